"""Where videos come from: files, folders, lists and arrays, recognised by looking at them."""

from tgan_fast.preparation.sources.collection import Collection, SourceVideo
from tgan_fast.preparation.sources.lists import only_of_split
from tgan_fast.preparation.sources.recognise import recognise

__all__ = ["Collection", "SourceVideo", "only_of_split", "recognise"]
