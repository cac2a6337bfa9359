"""Sentences for synthetic voices: short phrases, questions, numbers, bilabials, pauses.

The bank is always the same, so that a corpus can be rebuilt.
"""

from __future__ import annotations

import csv
import random
import re
from pathlib import Path

FROM_GRAMMAR = 150
MAX_TEXT_LENGTH = 110  # characters: about seven seconds
# Every tenth sentence of the bank is for held-out voices only, which speak no others.
HOLD_OUT_EVERY = 10

_PLAIN = re.compile(r"[A-Za-z' ,.;:?!-]+")

FIXED: tuple[str, ...] = (
    # bilabials next to every vowel
    "Maybe my mother put the big map back.",
    "Bob paid for the pump, but nobody picked it up.",
    "Mom, may I please have a piece of plum pie?",
    "Pam popped up by the pub at about half past four.",
    "My baby bumped into a beam and began to weep.",
    "Stop... sip it, tap it, then wipe the cup.",
    "Simple problems become impossible problems.",
    "Who mopped the lobby, and who may climb the ramp?",
    "A bumblebee hummed above the warm bamboo.",
    "Keep the lamp lamps apart, and map the maps.",
    "Beep, boop, pop.",
    "Hip, hop, and a hoop of soap.",
    # short phrases
    "Yes.",
    "No, thank you.",
    "Good morning, everybody.",
    "Oh, wow!",
    "Why not?",
    "Thanks, and goodbye.",
    "One moment, please.",
    "I hope so.",
    "Absolutely.",
    "Hmm, perhaps.",
    "Welcome back!",
    "Over here.",
    "Sure, go ahead.",
    "Never mind.",
    # questions
    "Where did you put the other shoe?",
    "How far is it to the harbour from here?",
    "Could you show me which button opens the door?",
    "Would you rather walk home, or wait for the bus?",
    "Whose voice was that on the phone?",
    "What should we eat, and when should we eat it?",
    "Are you sure that this is our train?",
    "Have they ever heard you laugh that loud?",
    "Is there a cheaper way to do this job?",
    "Why does the yellow one cost more than the blue one?",
    # pauses
    "Well... I never thought about it like that.",
    "First, breathe in; then, very slowly, breathe out.",
    "It was late, it was cold, and it would not stop raining.",
    "Wait... did you hear that? No... it is gone.",
    "Listen: one voice, one room, one story.",
    "If you can, come early. If you cannot, call me.",
    "So, to sum up, we need time, money, and a bit of luck.",
    "The answer, my friends, is... I do not know.",
    # rounded and spread
    "You two chose the smooth blue moon balloon.",
    "We see three green trees beneath the eastern peak.",
    "Oh no, the old rowing boat is full of snow.",
    "Who knew that you would use a whole new tool?",
    "The oily toy annoyed the noisy boys.",
    "She feels each breeze as it sweeps the beach.",
    "Go home slowly, and phone me tomorrow.",
    "A wise white owl went west one windy Wednesday.",
    # open vowels
    "Ah, father's car is parked in the far yard.",
    "That man had a black hat and a bad back.",
    "Out of the house, down to town, and around the mound.",
    "My five kind wives dried limes at night.",
    "All the tall talk was about a small wall.",
    "Odd socks got lost in the hot box.",
    # lip to teeth, tongue to teeth, hissing
    "Five fluffy foxes vanished from the vivid valley.",
    "Very few favours are ever given for free.",
    "Think of these three things and then thank them both.",
    "Neither brother bothers with the other's feather.",
    "She sells cheap chairs, and she should charge much less.",
    "Such a treasure is a pleasure to measure.",
    "George judged the large orange bridge.",
    "Sixty zebras zigzag across the dusty zoo.",
    "Shy witches watch the fish wash ashore.",
    # behind the teeth and further back
    "The king sang a long song in the evening.",
    "Go and get the big green grapes, Greg.",
    "Quick cooks keep cakes in a cool corner.",
    "Little Lily really loves yellow lilies.",
    "Red roses rarely grow around rough rocks.",
    "Her first nurse heard thirty birds at work.",
    "Ten tiny turtles danced until dawn.",
    "Have a heart, Henry; he has had a hard day.",
    "Yesterday a young yak yawned at you.",
    # typical of talking heads
    "Hello, and welcome to our weekly weather report.",
    "Today we will look at how to bake a loaf of bread.",
    "Please press the button when you are ready to begin.",
    "Your parcel will be with you before the weekend.",
    "I am afraid that the museum is closed on Mondays.",
    "Thank you for calling; how may I help you today?",
    "In the next chapter, the plot becomes more complicated.",
    "Remember to save your work before you shut down the computer.",
    "Our team has been working on this problem for months.",
    "The doctor will see you in about twenty minutes.",
    "Take the second street on the left, just behind the bakery.",
    "Let me explain what happened, step by step.",
    "There is nothing better than fresh coffee in the morning.",
    "Most people prefer a quiet room and a comfortable chair.",
    "I would like to begin by thanking all of our guests.",
    "Nobody expected the small team to win the final match.",
    "It takes a village to raise a child, and a river to turn a mill.",
    "When the wind blows from the north, the bay becomes rough.",
    "A good teacher asks more questions than she answers.",
    "Above the clouds, the moon was bright and the air was thin.",
    "We moved the piano up the stairs without a scratch.",
    "Her voice trembled, but she did not stop speaking.",
    "Sometimes the simplest plan is also the best one.",
    "Do not touch the oven, it is still hot!",
    "Everything you imagine could be built by somebody.",
    "The committee approved the budget by a narrow majority.",
    "Imagine a pipe, a pump, and a bucket with a broken bottom.",
    "Both of my grandparents were born in the same month.",
    "Put your thumb on the map and follow the river.",
)

_PEOPLE = (
    "my mother", "the baker", "our neighbour", "Bob", "Emma", "a young pilot", "the whole family",
    "somebody", "Professor Brown", "the boy with the blue cap", "your uncle", "Peter and Mary",
    "the champion", "a patient waiter", "the mayor", "she", "he", "nobody here",
)  # fmt: skip
_VERBS = (
    "bought", "moved", "painted", "wrapped up", "could not find", "brought back", "threw away",
    "measured", "chose", "picked", "remembered", "dropped", "fixed", "watched", "mixed up", "loved",
    "pushed", "showed me", "gave away", "weighed", "borrowed",
)  # fmt: skip
_THINGS = (
    "the broken lamp", "a bottle of apple juice", "the purple umbrella", "an old map", "the boat",
    "a bowl of soup", "the wooden box", "his favourite book", "a thick jumper",
    "the key to the shop", "a huge mushroom", "the empty cage", "some fresh bread",
    "the first chapter", "a pair of boots", "the yellow ribbon", "eight smooth stones",
    "the usual thing", "a warm blanket", "the jam",
)  # fmt: skip
_PLACES = (
    "by the bridge", "in the museum", "behind the house", "at home", "above the market",
    "under the table", "on the way to the airport", "near the river mouth", "next to the church",
    "in the back of the van", "outside", "between two palm trees",
)  # fmt: skip
_TIMES = (
    "this morning", "last September", "every evening", "before breakfast", "on Friday", "at noon",
    "a month ago", "after the match", "just now", "when the bell rang", "all summer long",
)  # fmt: skip
_OPENINGS = ("Well,", "Oh,", "Perhaps", "As far as I know,", "Believe me,", "Yes,", "Suddenly",
             "Apparently,", "Hmm,", "By the way,", "In my opinion,")  # fmt: skip
_UNITS = ("pounds", "miles", "minutes", "people", "pages", "metres", "months", "chickens", "steps")
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(number: int) -> str:
    """``number`` in words; raises ``ValueError`` outside 0–999,999."""
    if not 0 <= number < 1_000_000:
        raise ValueError(f"number {number}, expected 0 to 999999")
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens = _TENS[number // 10 - 2]
        return tens if number % 10 == 0 else f"{tens} {_ONES[number % 10]}"
    size, name, link = (100, "hundred", " and ") if number < 1000 else (1000, "thousand", " ")
    head = f"{in_words(number // size)} {name}"
    rest = number % size
    return head if rest == 0 else f"{head}{link}{in_words(rest)}"


def _clause(draw: random.Random) -> str:
    return f"{draw.choice(_PEOPLE)} {draw.choice(_VERBS)} {draw.choice(_THINGS)}"


def _statement(draw: random.Random) -> str:
    return f"{_clause(draw)} {draw.choice(_PLACES)} {draw.choice(_TIMES)}."


def _with_opening(draw: random.Random) -> str:
    return f"{draw.choice(_OPENINGS)} {_clause(draw)}, and {_clause(draw)}."


def _question(draw: random.Random) -> str:
    asks = ("Is it true that", "Did you know that", "Who told you that", "Do you believe that")
    return f"{draw.choice(asks)} {_clause(draw)} {draw.choice(_PLACES)}?"


def _count(draw: random.Random) -> str:
    number = draw.choice((draw.randrange(100), draw.randrange(1000), draw.randrange(1_000_000)))
    shapes = (
        "It was {n} {u}, {p}.", "{n} {u}? No, {m} {u}.", "We counted {n} {u} {t}.",
        "{p} is number {n}, and mine is {m}.",
    )  # fmt: skip
    return draw.choice(shapes).format(
        n=in_words(number), m=in_words(draw.randrange(100)), u=draw.choice(_UNITS),
        p=draw.choice(_PLACES), t=draw.choice(_TIMES),
    )  # fmt: skip


def _list_of_things(draw: random.Random) -> str:
    first, second, third = draw.sample(_THINGS, 3)
    return f"{draw.choice(_TIMES)}, {first}, {second}... and {third}!"


def bank(texts: Path | None = None) -> list[str]:
    """All sentences, in an order that is always the same.

    ``texts``: a manifest (file, transcript, …, license) whose short public-domain transcripts
    without digits are added.
    """
    draw = random.Random(3)
    made = list(FIXED)
    shapes = (_statement, _with_opening, _question, _count, _list_of_things)
    while len(made) < len(FIXED) + FROM_GRAMMAR:
        text = shapes[len(made) % len(shapes)](draw)
        made.append(text[0].upper() + text[1:])
    if texts is not None:
        made += _public_domain(texts)
    found = list(dict.fromkeys(made))
    draw.shuffle(found)
    return found


def _public_domain(manifest: Path) -> list[str]:
    with manifest.open() as file:
        rows = [r for r in csv.DictReader(file) if r["license"] == "public domain"]
    texts = [r["transcript"].strip() for r in rows]
    return [t for t in texts if t and len(t) <= MAX_TEXT_LENGTH and _PLAIN.fullmatch(t)]


def held_out_sentence(index: int) -> bool:
    """Whether the sentence at this index of the bank is kept from training."""
    return index % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1
