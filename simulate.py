"""Run federations on one machine; see `python simulate.py --help`."""

try:
    from fedprofile.simulations.cli import main
except ImportError as error:
    raise SystemExit(f"not installed ({error}); run `make setup`, then `.venv/bin/python simulate.py`.") from None

if __name__ == "__main__":
    main()
