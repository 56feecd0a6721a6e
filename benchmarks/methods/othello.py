"""Random games of Othello, with what is on the board after each move: the data of the board-game experiments.

Token 0 is the filler `-`; 1 to 60 are the squares but the four in the middle, row by row from A1. A game is its moves;
a board is seen by who moves next.
"""

from itertools import product

import numpy as np
import numpy.typing as npt

Boards = npt.NDArray[np.bool_]  # [games, 8, 8]

MOVES = 60
SQUARES = tuple(f"{column}{row + 1}" for row, column in product(range(8), "ABCDEFGH"))
_MIDDLE = (27, 28, 35, 36)
PLAYABLE = tuple(square for square in range(64) if square not in _MIDDLE)
TOKENS = ("-", *(SQUARES[square] for square in PLAYABLE))
_WAYS = tuple((down, right) for down, right in product((-1, 0, 1), repeat=2) if (down, right) != (0, 0))
_BETWEEN = 6  # the most discs that one line can enclose


def _moved(boards: Boards, way: tuple[int, int]) -> Boards:
    """Each square's mark one step further; what leaves the board is gone."""
    moved = np.zeros_like(boards)
    spans = ((slice(1, 8), slice(0, 7)), (slice(0, 8), slice(0, 8)), (slice(0, 7), slice(1, 8)))
    to, come = zip(*(spans[1 - by] for by in way), strict=True)
    moved[:, *to] = boards[:, *come]
    return moved


def _line(start: Boards, theirs: Boards, way: tuple[int, int]) -> Boards:
    """Their discs that follow each other from a square of ``start``."""
    line = _moved(start, way) & theirs
    for _ in range(_BETWEEN - 1):
        line = line | (_moved(line, way) & theirs)
    return line


def legal(mine: Boards, theirs: Boards) -> Boards:
    """Where one can move: an empty square at the end of a line of theirs that begins at one's own disc."""
    found = np.zeros_like(mine)
    for way in _WAYS:
        found |= _moved(_line(mine, theirs, way), way)
    return found & ~mine & ~theirs


def turned(mine: Boards, theirs: Boards, move: Boards) -> Boards:
    """Which of their discs a move turns over."""
    found = np.zeros_like(mine)
    for way in _WAYS:
        line = _line(move, theirs, way)
        closed = (_moved(line, way) & mine).any((1, 2))
        found |= line & closed[:, None, None]
    return found


def start(n: int) -> tuple[Boards, Boards]:
    """The discs of who begins, and the other's."""
    mine, theirs = np.zeros((n, 8, 8), np.bool_), np.zeros((n, 8, 8), np.bool_)
    mine[:, 3, 4] = mine[:, 4, 3] = True
    theirs[:, 3, 3] = theirs[:, 4, 4] = True
    return mine, theirs


def games(n: int, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Games whose every move is drawn evenly from the legal ones.

    Gives tokens [n, 60], -1 after a game's end, and labels [n, 60, 128] after each move: whether each square is mine
    (64), is yours (64), for who moves next.
    """
    rng = np.random.default_rng(seed)
    mine, theirs = start(n)
    tokens = np.full((n, MOVES), -1, np.int64)
    labels = np.zeros((n, MOVES, 128), np.uint8)
    to_token = np.zeros(64, np.int64)
    to_token[list(PLAYABLE)] = np.arange(1, 61)
    for turn in range(MOVES):
        mine, theirs, possible = _on_move(mine, theirs)
        goes_on = possible.any((1, 2))
        chance = rng.random((n, 64)) * possible.reshape(n, 64)
        square = chance.argmax(1)
        move = np.zeros((n, 64), np.bool_)
        move[np.arange(n), square] = goes_on
        move = move.reshape(n, 8, 8)
        over = turned(mine, theirs, move)
        mine, theirs = theirs & ~over, mine | move | over  # the other moves next
        tokens[goes_on, turn] = to_token[square[goes_on]]
        seen = _on_move(mine, theirs)
        labels[:, turn, :64], labels[:, turn, 64:] = seen[0].reshape(n, 64), seen[1].reshape(n, 64)
    return tokens, labels


def _on_move(mine: Boards, theirs: Boards) -> tuple[Boards, Boards, Boards]:
    """The discs of who can move, the other's, and where: who cannot passes."""
    possible = legal(mine, theirs)
    stuck = ~possible.any((1, 2))[:, None, None]
    other = legal(theirs, mine)
    passes = stuck & other.any((1, 2))[:, None, None]
    return np.where(passes, theirs, mine), np.where(passes, mine, theirs), np.where(passes, other, possible)
