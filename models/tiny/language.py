"""Words of the caption language, by what they say. `models.tiny.captions` makes sentences of them.

A phrase for a motion has three forms: with "they" or "to", with "it", and of the present participle.
"""

from __future__ import annotations

Phrase = tuple[str, str, str]

# The first word of each is the usual one.
COLOUR_WORDS = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "cyan": ("cyan", "turquoise", "light blue"),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "white": ("white",),
    "pink": ("pink",),
}
NOUNS = {
    "ball": ("ball", "disc", "circle", "sphere", "disk"),
    "square": ("square", "box", "block", "cube"),
    "triangle": ("triangle", "wedge", "pyramid"),
    "cross": ("cross", "plus", "plus sign"),
}
PLURALS = {"box": "boxes", "cross": "crosses", "plus": "pluses"}
ARTICLES = ("a", "a", "a", "the", "the", "one", "", "this")
SIZE_WORDS = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}
SPEED_WORDS = {
    "slow": ("slowly", "slowly", "gently", "at low speed"),
    "quick": ("quickly", "fast", "rapidly", "at high speed"),
}
BACKGROUND_WORDS = {
    "black": ("black",),
    "grey": ("grey", "gray"),
    "brown": ("brown",),
    "navy": ("navy", "dark blue"),
    "white": ("white",),
}
VERBS: tuple[Phrase, ...] = (
    ("roll", "rolls", "rolling"),
    ("move", "moves", "moving"),
    ("slide", "slides", "sliding"),
    ("drift", "drifts", "drifting"),
    ("glide", "glides", "gliding"),
    ("go", "goes", "going"),
    ("travel", "travels", "travelling"),
    ("fly", "flies", "flying"),
    ("float", "floats", "floating"),
    ("run", "runs", "running"),
)
DIRECTIONS = {
    side: (
        f"to the {side}",
        side,
        f"{side}wards",
        f"{side}ward",
        f"towards the {side}",
        *(f"from {other} to {side}", f"from the {other} to the {side}", f"{other} to {side}") * 2,
        f"to the {side} side",
        f"towards the {side} edge",
    )
    for side, other in (("left", "right"), ("right", "left"))
} | {
    side: (
        side,
        f"{side}wards",
        f"{side}ward",
        f"to the {end}",
        f"towards the {end}",
        *(f"from {other} to {end}", f"from the {other} to the {end}", f"{other} to {end}") * 2,
    )
    for side, end, other in (("up", "top", "bottom"), ("down", "bottom", "top"))
}
# Verbs that say the direction themselves.
PHRASES: dict[str, tuple[Phrase, ...]] = {
    "up": (("rise", "rises", "rising"), ("rise up", "rises up", "rising up"), ("climb", "climbs", "climbing")),
    "down": (("fall", "falls", "falling"), ("fall down", "falls down", "falling down"), ("sink", "sinks", "sinking")),
    "growing": (
        ("grow", "grows", "growing"),
        ("get bigger", "gets bigger", "getting bigger"),
        ("get larger", "gets larger", "getting larger"),
        ("grow larger", "grows larger", "growing larger"),
        ("become bigger", "becomes bigger", "becoming bigger"),
        ("become huge", "becomes huge", "becoming huge"),
        ("turn bigger", "turns bigger", "turning bigger"),
        ("turn larger", "turns larger", "turning larger"),
        ("become larger", "becomes larger", "becoming larger"),
        ("expand", "expands", "expanding"),
    ),
    "shrinking": (
        ("shrink", "shrinks", "shrinking"),
        ("get smaller", "gets smaller", "getting smaller"),
        ("grow smaller", "grows smaller", "growing smaller"),
        ("turn smaller", "turns smaller", "turning smaller"),
        ("become smaller", "becomes smaller", "becoming smaller"),
        ("become tiny", "becomes tiny", "becoming tiny"),
    ),
    "still": (
        ("stay still", "stays still", "staying still"),
        ("stand still", "stands still", "standing still"),
        ("sit still", "sits still", "sitting still"),
        ("not move", "does not move", "not moving"),
        ("not move", "doesn t move", "not moving"),
        ("not move at all", "does not move at all", "not moving at all"),
        ("rest", "rests", "resting"),
        ("stay in place", "stays in place", "staying in place"),
        ("rest in place", "rests in place", "resting in place"),
        ("stay motionless", "is motionless", "motionless"),
        ("stay still", "is still", "still"),
    ),
    "bouncing": (
        ("bounce", "bounces", "bouncing"),
        ("bounce up and down", "bounces up and down", "bouncing up and down"),
        ("hop", "hops", "hopping"),
        ("hop up and down", "hops up and down", "hopping up and down"),
        ("jump", "jumps", "jumping"),
        ("jump up and down", "jumps up and down", "jumping up and down"),
    ),
}
# Phrases kept from training, by the form with "it".
HELD_OUT_PHRASES = {
    "up": "rises up",
    "down": "falls down",
    "growing": "becomes larger",
    "shrinking": "becomes smaller",
    "still": "rests in place",
    "bouncing": "hops up and down",
}

# "{s}" is the subject, "{v}", "{vs}" and "{ving}" its motion in the three forms.
PATTERNS = (
    *("{s} {vs}",) * 6,
    *("{s} {ving}",) * 4,
    *("{s} is {ving}",) * 2,
    "{s} that {vs}",
    "{s} which is {ving}",
    "{s}, {ving}",
    "{ving}, {s}",
    "a video of {s} {ving}",
    "a video of {s} that {vs}",
    "video of {s} {ving}",
    "a clip of {s} {ving}",
    "an animation of {s} {ving}",
    "generate a video of {s} {ving}",
    "make a video where {s} {vs}",
    "make {s} {v}",
    "show {s} {ving}",
    "show me {s} {ving}",
    "show me {s} that {vs}",
    "please show {s} {ving}",
    "please draw {s} {ving}",
    "can you show {s} {ving}",
    "can you show me {s} that {vs}",
    "can you make {s} {v}",
    "i want to see {s} {ving}",
    "i would like {s} that {vs}",
    "we see {s} that {vs}",
    "we see {s} {ving}",
    "you see {s} and it {vs}",
    "there is {s} {ving}",
    "there is {s}, it {vs}",
    "{s}, it {vs}",
    "{s} and it {vs}",
    "in this video {s} {vs}",
    "watch {s} {v}",
    "here is a video in which {s} {vs}",
    "could you make {s} {v}",
    "let me see {s} {ving}",
    "i want a clip where {s} {vs}",
    "draw {s}, which {vs}",
    "we can watch {s} {ving}",
    "this is {s} and it {vs}",
    "notice how {s} {vs}",
)
# Of two things, which differ in their motions too.
PAIRED = (
    *("{s} {vs} and {s2} {vs2}",) * 4,
    *("{s} {ving} and {s2} {ving2}",) * 3,
    "{s} {vs} while {s2} {vs2}",
    "{s} {vs}, {s2} {vs2}",
    "{s} {ving}, {s2} {ving2}",
    "{s} is {ving} and {s2} is {ving2}",
    "a video of {s} {ving} and {s2} {ving2}",
    "show me {s} {ving} and {s2} {ving2}",
    "can you show {s} that {vs} and {s2} that {vs2}",
    "there is {s} {ving} and {s2} {ving2}",
    "{s} that {vs} and {s2} that {vs2}",
    "we see {s} and {s2}, {s} {vs} and {s2} {vs2}",
    "{s} {vs} but {s2} {vs2}",
    "{s} {vs}, and {s2} {vs2}",
    "show {s} that {vs} next to {s2} that {vs2}",
    "make {s} {v} and {s2} {v2}",
    "watch {s} {v} and {s2} {v2}",
    "{s}, {ving}, and {s2}, {ving2}",
    "{s} {ving} beside {s2} {ving2}",
    "{s} {vs} with {s2} {ving2}",
    "i want a clip where {s} {vs} and {s2} {vs2}",
)
# Of two things that move alike.
TOGETHER = (
    *("{s} and {s2} {v}",) * 4,
    *("{s} and {s2} {ving}",) * 3,
    "{s} and {s2} are {ving}",
    "{s} and {s2}, both {ving}",
    "{s} and {s2} both {v}",
    "{s}, {s2}, {ving}",
    "{s} and {s2} {v} together",
    "{s} next to {s2}, both {ving}",
    "a video of {s} and {s2} {ving}",
    "a video of {s} and {s2} that {v}",
    "show me {s} and {s2} {ving}",
    "can you show {s} and {s2} {ving}",
    "i want to see {s} and {s2} {ving}",
    "there are {s} and {s2}, they {v}",
    "make {s} and {s2} {v}",
    "{s} with {s2}, both {ving}",
    "{s} {vs} and so does {s2}",
    "{s} {ving} with {s2}",
    "let me see {s} and {s2} {ving}",
)
# Of two things of one kind.
ALIKE = (
    *("{s} {v}",) * 3,
    *("{s} {ving}",) * 3,
    "{s} are {ving}",
    "{s} that {v}",
    "a video of {s} {ving}",
    "show me {s} {ving}",
    "can you show {s} {ving}",
    "there are {s}, both {ving}",
    "there are {s}, they {v}",
    "we see {s} that {v}",
)
BEFORE = ("on a {b} background {x}", "on a {b} background, {x}", "on {b}, {x}", "against a {b} wall {x}")
AFTER = (
    *("{x} on a {b} background",) * 3,
    "{x} on {b}",
    "{x}, on {b}",
    "{x} in front of a {b} wall",
    "{x} in front of a {b} background",
    "{x}, {b} background",
    "{x} against a {b} background",
    "{x} with a {b} background",
    "{x}, the background is {b}",
)
# Kept from training, for the two sets of the evaluation: `HELD_OUT_PATTERNS` for the first.
HELD_OUT_PATTERNS = (
    "we see a video of {s} that {vs}",
    "in front of a {b} wall {s} {vs}",
    "on a {b} wall we see {s} that {vs}",
    "a video of {s} on a {b} background that {vs}",
)
FREE_PATTERNS = (
    "could we see how {s} {vs}",
    "is there a video where {s} {vs}",
    "what about {s} {ving}",
    "give me {s} {ving}",
    "please let {s} {v}",
    "let us watch how {s} {vs}",
    "it is {s} and you can see it {ving}",
    "look, {s} is {ving}",
    "{s} can be seen {ving}",
    "i would like to see a clip in which {s} {vs}",
    "here we have {s}, and this one {vs}",
    "the video shows {s} as it {vs}",
)
FREE_PAIRED = (
    "there is {s} that {vs} and there is {s2} that {vs2}",
    "{s} {vs} and at the same time {s2} {vs2}",
    "please let {s} {v} and {s2} {v2}",
    "look, {s} is {ving} and also {s2} is {ving2}",
)
FREE_TOGETHER = (
    "could we see {s} and {s2} as they {v}",
    "give me {s} with {s2}, they are {ving}",
    "{s} and also {s2} can be seen {ving}",
)
FREE_ALIKE = ("could we see how {s} {v}", "give me {s} {ving}")
FREE_BACKGROUNDS = ("{x}", "{x}, and the wall behind is {b}", "background {b}, {x}", "in a {b} room {x}")
