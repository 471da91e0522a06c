"""Text of rows turned into columns by arithmetic on the bytes of all rows at once, 20 times as fast as row by row.

What it does not know (quotes, rows of several widths, whatever is wrong) it leaves to who reads row by row, and says so
by `NotPlain`: a number that it gives is the one that `float` gives, to the last bit.

B bytes, L lines, M fields of a column.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Words = NDArray[np.uint64]
PAD = 24
"""Bytes before the text, so that the words that end in its first field lie within the buffer."""
LONGEST_KEY, LONGEST_NUMBER = 128, 32
MOST_DIGITS = 16
"""Characters of a number that are worked out as one integer. With a point these are 15 digits at most: such integers are
floats, and so are powers of ten up to 22, so that the one division is rounded correctly. Longer numbers take the slow way."""
MOST_DECIMALS = 19
"""All of them are an integer below 2**64."""
COMMA, BREAK, RETURN, POINT, UNDERSCORE = b",\n\r._"


class NotPlain(Exception):
    """Text that has to be read row by row."""


class TextColumns:
    """Whole lines of text, all with the same number of columns or with two."""

    def __init__(self, text: bytes, most_columns: int) -> None:
        """Raises NotPlain where lines differ otherwise, or hold a quote."""
        if b'"' in text:
            raise NotPlain
        lines = None if text.endswith(b"\n") and not text[-2:-1].isspace() else text.count(b"\n")
        if lines is not None:
            text = text.rstrip() + b"\n"
        self._buffer = b"".join(
            (b"0" * PAD, text, b"0" * LONGEST_KEY)
        )  # one copy: fresh memory costs more than arithmetic
        self._byte_B = np.frombuffer(self._buffer, np.uint8)
        self._word_B = np.ndarray((len(self._buffer) - 7,), "<u8", self._buffer, 0, (1,))
        byte_B = self._byte_B[: PAD + len(text)]
        stop_B = np.flatnonzero((byte_B == COMMA) | (byte_B == BREAK))
        last_L = np.flatnonzero(byte_B[stop_B] == BREAK)
        width_L: Ints = np.diff(last_L, prepend=-1)
        self.columns = int(width_L.max())
        self.lines = len(width_L) if lines is None else lines
        self.is_full_L = width_L == self.columns
        if not (self.is_full_L | (width_L == 2)).all() or not 2 <= self.columns <= most_columns:
            raise NotPlain
        end_L = stop_B[last_L]
        end_L -= self._byte_B[end_L - 1] == RETURN
        first_L = last_L - width_L + 1
        self._start_L = np.r_[PAD, stop_B[last_L[:-1]] + 1]
        self._key_end_L = np.where(width_L == 2, end_L, stop_B[first_L + 1])
        if self.is_full_L.all():
            self._stop_CM = np.ascontiguousarray(stop_B.reshape(-1, self.columns).T)
        else:
            self._stop_CM = stop_B[first_L[self.is_full_L] + np.arange(self.columns)[:, None]]
        self._stop_CM[-1] = end_L[self.is_full_L]

    def keys(self) -> tuple[list[bytes], Ints]:
        """Video and time as they are written, of each run of lines where these are the same, and the run of each line."""
        length_L = self._key_end_L - self._start_L
        if length_L.max() > LONGEST_KEY:
            raise NotPlain
        is_new_L: NDArray[np.bool_] = np.r_[True, length_L[1:] != length_L[:-1]]
        for place in range(0, int(length_L.max()), 8):  # the last eight characters, those before, ...
            word_L = self._word_B[np.maximum(self._key_end_L - 8 - place, 0)]
            word_L = _without(word_L, length_L - place)
            is_new_L[1:] |= word_L[1:] != word_L[:-1]
        new = np.flatnonzero(is_new_L)
        ends = zip(self._start_L[new].tolist(), self._key_end_L[new].tolist(), strict=True)
        return [self._buffer[start:end] for start, end in ends], np.cumsum(is_new_L) - 1

    def numbers(self, column: int) -> Floats:
        """A column of the full lines."""
        return self._numbers(self._stop_CM[column - 1] + 1, self._stop_CM[column])

    def whole(self, column: int, limit: float, *, empty_too: bool) -> Ints:
        """A column of whole numbers below `limit`; `empty_too`: -1 where the field is empty, else that is not plain."""
        start, end = self._stop_CM[column - 1] + 1, self._stop_CM[column]
        is_empty = start == end
        if is_empty.any() and empty_too:
            number = np.full(len(start), -1.0)
            number[~is_empty] = self._numbers(start[~is_empty], end[~is_empty])
        else:
            number = self._numbers(start, end)
        whole = number.astype(np.int64)
        if not ((whole == number) & (np.abs(number) < limit)).all():
            raise NotPlain
        return whole

    def _numbers(self, start_M: Ints, end_M: Ints) -> Floats:
        """Fields as numbers: those with as many decimals as the first together, then of the others likewise."""
        number_M = np.empty(len(start_M))
        left = np.arange(len(start_M))
        for _ in range(2 * MOST_DIGITS):
            if not len(left):
                return number_M
            decimals = self._decimals(start_M[left[0]], end_M[left[0]])
            is_alike = self._has_decimals(start_M[left], end_M[left], decimals)
            alike = left if is_alike.all() else left[is_alike]
            number, is_known = self._decimal(start_M[alike], end_M[alike], decimals)
            number_M[alike] = number
            slow = alike[~is_known]
            if len(slow):
                number_M[slow] = self._by_float(start_M[slow], end_M[slow])
            left = left[~is_alike]
        raise NotPlain

    def _decimals(self, start: int, end: int) -> int:
        """Digits behind the point; -1: there is none."""
        field = self._buffer[start:end]
        return len(field) - 1 - field.rfind(b".") if b"." in field else -1

    def _has_decimals(self, start_M: Ints, end_M: Ints, decimals: int) -> NDArray[np.bool_]:
        if decimals >= 0:
            place_M = end_M - 1 - decimals
            return np.asarray((place_M >= start_M) & (self._byte_B[np.maximum(place_M, 0)] == POINT))
        has_M = np.ones(len(start_M), np.bool_)
        for place in range(int((end_M - start_M).max())):
            has_M &= (start_M + place >= end_M) | (self._byte_B[np.minimum(start_M + place, end_M)] != POINT)
        return has_M

    def _decimal(self, start_M: Ints, end_M: Ints, decimals: int) -> tuple[Floats, NDArray[np.bool_]]:
        """Numbers of digits and a point, the last `decimals` digits behind it; whether each is such a one."""
        length_M = end_M - start_M
        if decimals >= MOST_DIGITS:
            return self._all_digits(start_M, end_M, decimals)
        is_known_M = (length_M > (decimals >= 0)) & (length_M <= MOST_DIGITS)
        low_M = _without(self._word_B[end_M - 8] ^ ZEROS, length_M)
        is_long = bool((length_M > 8).any())
        high_M = _without(self._word_B[end_M - 16] ^ ZEROS, length_M - 8) if is_long else np.zeros(1, np.uint64)
        if decimals >= 8:
            high_M = _closed(high_M, decimals - 8)
        elif decimals >= 0:
            low_M = _closed(low_M, decimals) | (high_M >> np.uint64(56))
            high_M = high_M << np.uint64(8)
        is_known_M &= _are_digits(low_M) & _are_digits(high_M)
        digits_M = _of_digits(low_M)
        if is_long:
            digits_M = digits_M + _of_digits(high_M) * np.uint64(10**8)
        return digits_M.astype(np.float64) / 10.0 ** max(decimals, 0), is_known_M

    def _all_digits(self, start_M: Ints, end_M: Ints, decimals: int) -> tuple[Floats, NDArray[np.bool_]]:
        """The same for 0. and 16 decimals or more, as floats are written in full: in the 64 digits that x86 divides with."""
        if decimals > MOST_DECIMALS or np.finfo(np.longdouble).nmant != 63:
            return np.empty(len(start_M)), np.zeros(len(start_M), np.bool_)
        is_known_M = (end_M - start_M == decimals + 2) & (self._byte_B[start_M] == ord("0"))
        high_M = _without(self._word_B[end_M - 24] ^ ZEROS, np.array(decimals - 16))
        digits_M = np.zeros(len(start_M), np.uint64)
        for word_M in (high_M, self._word_B[end_M - 16] ^ ZEROS, self._word_B[end_M - 8] ^ ZEROS):
            is_known_M &= _are_digits(word_M)
            digits_M = digits_M * np.uint64(10**8) + _of_digits(word_M)
        quotient_M = digits_M.astype(np.longdouble) / np.uint64(10**decimals).astype(np.longdouble)
        number_M = quotient_M.astype(np.float64)
        off_M, step_M = np.abs(quotient_M - number_M), np.spacing(number_M)
        # halfway between two floats only after it was rounded itself, perhaps
        return number_M, is_known_M & (off_M != step_M / 2) & (off_M != step_M / 4)

    def _by_float(self, start_M: Ints, end_M: Ints) -> Floats:
        """Numbers with a sign, an exponent, spaces, many digits: as Python reads them."""
        length_M = end_M - start_M
        if length_M.max() > LONGEST_NUMBER:
            raise NotPlain
        width = int(length_M.max())
        char_MW = np.ndarray((len(self._buffer) - width, width), np.uint8, self._buffer, 0, (1, 1))[start_M]
        char_MW[np.arange(width) >= length_M[:, None]] = 0
        if (char_MW == UNDERSCORE).any() or not length_M.all():
            raise NotPlain
        try:
            number_M = char_MW.view(f"S{width}")[:, 0].astype(np.float64)
        except ValueError:
            raise NotPlain from None
        if not np.isfinite(number_M).all():
            raise NotPlain
        return number_M


def _u8(pattern: int) -> np.uint64:
    return np.uint64(pattern * 0x0101010101010101)


ZEROS = _u8(ord("0"))


KEPT = np.array([0, *(-1 << (64 - 8 * kept) & (2**64 - 1) for kept in range(1, 9))], np.uint64)


def _without(word_M: Words, length_M: Ints) -> Words:
    """Words with only the last `length` of their bytes, which in memory stand last and so are the high ones; the others 0."""
    return np.asarray(word_M & KEPT[np.clip(length_M, 0, 8)])


def _closed(word_M: Words, decimals: int) -> Words:
    """Words without the byte before the last `decimals`: those before it move up."""
    behind = ~np.uint64(0) << np.uint64(64 - 8 * decimals) if decimals else np.uint64(0)
    before = (np.uint64(1) << np.uint64(56 - 8 * decimals)) - np.uint64(1)
    return np.asarray((word_M & behind) | ((word_M & before) << np.uint64(8)))


def _are_digits(word_M: Words) -> NDArray[np.bool_]:
    """Whether each byte is at most 9."""
    return np.asarray(((word_M | (word_M + _u8(0x76))) & _u8(0x80)) == 0)


def _of_digits(word_M: Words) -> Words:
    """The number whose eight decimal digits the bytes are, the first digit in the low byte: pairs, fours, eight at a time."""
    pair_M = word_M * np.uint64(10 * 2**8 + 1) >> np.uint64(8) & np.uint64(0x00FF00FF00FF00FF)
    four_M = pair_M * np.uint64(100 * 2**16 + 1) >> np.uint64(16) & np.uint64(0x0000FFFF0000FFFF)
    return np.asarray(four_M * np.uint64(10_000 * 2**32 + 1) >> np.uint64(32))
