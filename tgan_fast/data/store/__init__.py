"""Clip stores: prepared videos as one memory-mappable file of frames, and a readable index of them.

    index.jsonl     a line on the store, then one on each video; every line ends in its own checksum
    frames.bin      uint8 [F, H, W, C], nothing else: the videos' frames in the order of the index
    skipped.jsonl   what could not be prepared, and why

Frames reach the disk before the line that speaks of them. Whenever a writer dies, the index tells of whole videos only.
"""

from tgan_fast.data.store.clip_store import ClipStore
from tgan_fast.data.store.index import Entry, Header, json_bytes, read_index
from tgan_fast.data.store.writer import StoreWriter

__all__ = ["ClipStore", "Entry", "Header", "StoreWriter", "json_bytes", "read_index"]
