"""A word-piece vocabulary learnt by byte-pair merges, the same on every run.

The trainer in `tokenizers` (0.23) numbers pieces and breaks ties in hash order, so that two runs give different
vocabularies and no checkpoint could be rebuilt.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

ALPHABET_SIZE = 80


def learn_word_pieces(words: Iterable[str], size: int, special_tokens: tuple[str, ...]) -> list[str]:
    """Return `size` pieces, special tokens first; pieces inside a word start with "##".

    Merges the most frequent pair of neighbouring pieces, the alphabetically first among equals, until there are enough.
    """
    counted = Counter(words)
    letters = Counter[str]()
    for word, count in counted.items():
        for letter in word:
            letters[letter] += count
    alphabet = set(sorted(letters, key=lambda letter: (-letters[letter], letter))[:ALPHABET_SIZE])
    kept = sorted((word, count) for word, count in counted.items() if alphabet.issuperset(word))
    frequency = [count for _, count in kept]
    split = [[word[0], *("##" + letter for letter in word[1:])] for word, _ in kept]
    pieces = dict.fromkeys(sorted({piece for parts in split for piece in parts}))

    pairs = Counter[tuple[str, str]]()
    found_in: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for index, parts in enumerate(split):
        for pair in pairwise(parts):
            pairs[pair] += frequency[index]
            found_in[pair].add(index)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    while heap and len(special_tokens) + len(pieces) < size:
        count, pair = heapq.heappop(heap)
        if -count != pairs[pair] or not count:
            continue  # Outdated: the pair was pushed again with its new count.
        merged = pair[0] + pair[1].removeprefix("##")
        pieces[merged] = None  # Two different pairs can spell the same piece.
        changed = set[tuple[str, str]]()
        for index in found_in.pop(pair):
            before = split[index]
            after = _merge(before, pair, merged)
            for old in pairwise(before):
                pairs[old] -= frequency[index]
                changed.add(old)
            for new in pairwise(after):
                pairs[new] += frequency[index]
                found_in[new].add(index)
                changed.add(new)
            split[index] = after
        for touched in changed - {pair}:
            heapq.heappush(heap, (-pairs[touched], touched))
    return [*special_tokens, *pieces]


def _merge(parts: list[str], pair: tuple[str, str], merged: str) -> list[str]:
    result: list[str] = []
    for part in parts:
        if result and (result[-1], part) == pair:
            result[-1] = merged
        else:
            result.append(part)
    return result
