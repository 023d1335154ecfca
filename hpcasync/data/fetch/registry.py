"""The corpora that can be fetched, by name."""

from hpcasync.data.fetch.corpus import Fetch
from hpcasync.data.fetch.generated import fetch_embedded
from hpcasync.data.fetch.multi30k import fetch_multi30k
from hpcasync.data.fetch.wmt import fetch_tasks

CORPORA: dict[str, Fetch] = {"embedded": fetch_embedded, "multi30k": fetch_multi30k, **fetch_tasks()}
