"""Bundles on an emulated Raspberry Pi 5 and the same ones here: do answers agree, what memory and disk do they take."""
