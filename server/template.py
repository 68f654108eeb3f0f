"""The files that `flower-server init` writes for a person to edit.

`federation.toml` is a complete card as it is written, for visitors of a shop and the events of their sessions, and
every setting that is not obvious says what it does.
"""

from typing import Literal

from fedprofile.common.card import BaseSpec

_SERVER = """\
# Where this server listens. Changing `host` needs a new certificate, so choose it at `flower-server init`.

host = "{host}"          # what tenants connect to; the certificate is made out to it
listen = "{listen}"      # the address that the public listener and the health service bind to
port = {port}               # tenants, TLS
admin_port = {admin_port}         # operator, loopback only, needs the token in operator.token
health_port = {health_port}        # standard gRPC health service (grpc.health.v1), TLS
max_body_mib = 64         # largest request from a tenant
patience = 20.0           # seconds for which a round, and the final delivery, wait for a tenant that has left
# base = "/models/base"   # the base model's folder, when it is neither the embedded package nor on the hub

# [tracking]               # what history.jsonl holds, to look at; files only, nothing is sent
# kind = "tensorboard"     # or "mlflow", "wandb" (offline), "none"; all but "none" are extras to install
# folder = "tracking"      # within this directory, or an absolute path
"""

_FEDERATION = """\
# The federation card. It is public: every tenant reads it, and agrees to exactly this content by its hash. After the
# first tenant has joined, a change makes another federation: tenants join anew, and run in a new directory.
#
# It is valid as it is, for this example: visitors of shops, the events of their sessions, and whether they buy.

format = 1
name = "{name}"

# The weakest promise that a tenant may make here. The server cannot verify it: the noise is added at the tenant.
max_epsilon = 10.0

# L2 norm of the largest update. Tenants scale to it themselves, the server drops what is above.
max_update_norm = 10.0

# Where the run goes on from an earlier one: SHA-256 of `initial.safetensors` beside this file.
# Where B alone is trained, adapter.a_of then names the card that it was trained under, beside whose A it belongs.
# initial_adapter = "..."

[task]
kind = "binary"                    # or "multiclass", with any number of labels
labels = ["no", "yes"]             # in order; the second is the positive one
# false_positive_rate = 0.05       # for alarms: recall at this share of false alarms is reported as well
# A number instead: kind = "regression", target = "rating", and its public range low = 1, high = 5, to which it is
# clipped. loss = "huber" is for targets with errors far from the others.

# One attribute for fairness tables. It never enters the text or the features, and a tenant may decline it.
# [task.group]
# attribute = "region"
# values = ["north", "south"]      # "other" is always there

[history]
# How one user's events become text: literals and column names, with an optional format as in {{price:.0f}}.
record = "{{visitor}} visitor in {{month}}"   # from the labelled row itself
event = "{{action}} {{item}}"                # from each earlier event, newest kept
separator = "; "
max_events = 64
max_tokens = 64

# Columns that are fused with the text, by PUBLIC ranges: nothing here is computed from data.
[[features.numeric]]
name = "pages"
low = 0
high = 200
scale = "log"                      # or "linear"
knots = [2, 5, 15, 50]             # one hat function for low, each knot and high; without knots the value itself

[[features.numeric]]
name = "seconds"
low = 0
high = 3600
scale = "log"
unit = 10.0                        # on a log scale: the distance from `low` that counts as small
knots = [30, 120, 600]

[[features.categorical]]
name = "weekend"
values = ["no", "yes"]

# A vector in a column, such as an image's or an item's embedding: a JSON array as text, or a list.
# [[features.vectors]]
# name = "item_embedding"
# width = 384
# norm = 1.0                       # longer ones are shortened to it; or low and high, to which each value is clipped

[base]
# The frozen pretrained model, pinned by content.
id = "{id}"
revision = "{revision}"
weights_sha256 = "{weights}"
config_sha256 = "{config}"
tokenizer_sha256 = "{tokenizer}"

[adapter]
method = "lora"                    # or "head": only the linear head is trained
rank = 8
alpha = 16.0
scaling = "lora"                   # times alpha / rank; or "rslora": times alpha / sqrt(rank)
targets = {targets}
top_layers = 1                     # how many of the last layers carry LoRA; the rest is computed once and kept
train = "B"                        # A stays as it was drawn from the card's hash; "AB" trains both, at twice the bytes
pooling = {pooling}                 # "mean" over the tokens for encoders, "last" token for decoders
text_scale = 1.0                   # factor on the pooled text; decides how much of the clip norm the head gets
label_head = 0.0                   # above 0 the head starts from the base's embeddings of the label names

[training]
rounds = 10
local_steps = 10                   # noised steps of a tenant in one round
optimizer = "adam"                 # or "adamw", with weight_decay, or "sgd", with momentum
learning_rate = 0.005              # LoRA
head_learning_rate = 0.05          # the linear head
schedule = "constant"              # or "linear", "cosine": how both fall to 0 over the whole run
warmup = 0.0                       # part of the run over which both rise
proximal = 0.0                     # FedProx's mu
# head_clip = 0.7                  # clip the head apart from LoRA, to this part of the clip norm
views = 1                          # of each record, whole and with parts left out, averaged before clipping
adversarial = 0.0                  # train each record where its own loss is higher, so far from its activations

[aggregation]
strategy = "fedavg"                # or "fedavgm", "fedadam"
learning_rate = 1.0                # the server's
weight_cap = 1000000               # nobody weighs more than this many declared users
average_last = 1                   # deliver the mean of the adapters after the last so many rounds

[rounds]
min_tenants = 2                    # a round starts with at least so many
start_after = 0.0                  # seconds to wait for more before the first round
timeout = 600.0                    # seconds after which a round goes on without those who have not answered

[evaluation]
when = "start-middle-end"          # or "never", "end", "every-round"; each one is paid for by every tenant
patience = 0                       # with "every-round": stop after so many evaluations without a gain
"""


def server_text(*, host: str, listen: str, port: int, admin_port: int, health_port: int) -> str:
    """`server.toml`; see `directory.ServerSettings`."""
    return _SERVER.format(host=host, listen=listen, port=port, admin_port=admin_port, health_port=health_port)


def federation_text(*, name: str, base: BaseSpec, targets: tuple[str, ...], pooling: Literal["mean", "last"]) -> str:
    """`federation.toml`.

    Args:
        name: The federation's.
        base: The base model.
        targets: The modules that carry LoRA.
        pooling: Of the text.

    Returns:
        The text of a valid card.
    """
    return _FEDERATION.format(
        name=name,
        id=base.id,
        revision=base.revision,
        weights=base.weights_sha256,
        config=base.config_sha256,
        tokenizer=base.tokenizer_sha256,
        targets="[" + ", ".join(f'"{target}"' for target in targets) + "]",
        pooling=f'"{pooling}"',
    )
