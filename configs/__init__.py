"""The Hydra configurations that ship with megagpt. Imported as `megagpt.configs`."""
