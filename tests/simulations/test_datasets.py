"""The data sets' adapters: tenants, what is left out, duplicates; and the generated population."""

from pathlib import Path

import pytest

from fedprofile.common.errors import ConfigError, DataError
from fedprofile.simulations.datasets import load_dataset
from fedprofile.simulations.population import SHOPS, write_shop

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="the real data sets are not beside the repository")
def test_online_shoppers_has_ten_tenants_without_duplicates_or_page_values() -> None:
    tenants = list(load_dataset("online-shoppers", DATA))
    assert [len(tenant.rows) for tenant in tenants] == [3911, 2388, 2013, 1066, 728, 450, 443, 343, 260, 247]
    assert tenants[0].name == "traffic-02"
    for tenant in tenants:
        assert not {"PageValues", "Revenue"} & set(tenant.columns)
        assert len({row[1:] for row in tenant.rows}) <= len(tenant.rows) == len({row[0] for row in tenant.rows})
    buyers = sum(row[-1] == "yes" for tenant in tenants for row in tenant.rows)
    assert 0.14 < buyers / sum(len(tenant.rows) for tenant in tenants) < 0.18


def test_a_wrong_name_or_folder_is_a_plain_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"choose from: clinc150, .*online-shoppers"):
        load_dataset("online-shopper", tmp_path)
    with pytest.raises(DataError, match="is not in it"):
        load_dataset("online-shoppers", tmp_path)
    (tmp_path / "online_shoppers_intention.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="has not the columns"):
        load_dataset("online-shoppers", tmp_path)


def test_the_population_is_a_function_of_its_seed(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "again", "other")]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        folder.mkdir()
        write_shop(SHOPS[3], folder, seed)
    texts = [(folder / "visits.csv").read_text() + (folder / "events.csv").read_text() for folder in folders]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    bought = texts[0].count(",yes\n") / SHOPS[3].visitors
    assert 0.2 < bought < 0.6
