"""How fast the way to a server is, as large downloads have shown: whether it pays to compress results.

That a server is on loopback says nothing: it may be the end of a tunnel. What is known is the process's, not one
client's: the next client of the same server has it.
"""

#: Bytes a second from which on compression takes longer than it saves. Of 268 MB of bfloat16 held in fp32 it saves
#: 131 MB on the way, for 0.27 s more of the job's processor and 0.25 s of the client's (docs/performance.md, "Large
#: results"): 131 MB / 0.52 s, 2 Gbit/s. What packs more slowly breaks even below that, a ReLU's outputs at 110 MB/s:
#: on a link in between they come later than they might.
FAST = 250e6
#: Bytes of a download that counts. A smaller one is over before its connection is up to speed.
LARGE = 8 << 20

_fast: dict[str, bool] = {}


def downloaded(url: str, size: int, seconds: float) -> None:
    """Note that ``size`` bytes came from a server in so many seconds. The last large download says what its link is."""
    if size >= LARGE:
        _fast[url] = size > FAST * seconds


def is_fast(url: str) -> bool:
    """Whether the link is known to be faster than compression."""
    return _fast.get(url, False)
