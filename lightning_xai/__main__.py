"""`python -m lightning_xai` is the command `lightning-xai`."""

from lightning_xai.cli import main

main()
