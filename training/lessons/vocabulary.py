"""Words to spell, to reverse and to repeat: common words and made-up words."""

from random import Random

from training.lessons.facts import CATEGORIES, DEFINITIONS, OPPOSITES, PLURALS

_MORE = """
about above across action adult advice again agree alarm almost alone angle angry answer arrow artist autumn basket
battle beach beauty become behind belief better bottle bottom branch bread breakfast bright bring broken brush bucket
build busy butter button camera camp candle captain careful carpet carry catch cause centre certain chain chance
change cheap cheese choice clean clear clever climb close cloth coast collar comfort common copper corner cotton
cough count couple courage cousin cover crowd crown curtain custom damage dance danger daughter decide degree delay
desire detail dinner direct distance double doubt dream dress drive early earth effect effort empty energy engine
enough equal escape evening event every example expert explain famous fashion feather fellow fence fever field
fight finish flame flight floor follow force forget forward frame freedom fresh front frozen future gallery gather
gentle giant glass glory goods grain grand grass ground group growth guess guide habit hammer handle happen harbour
heart heaven height helpful hidden hollow honest hope hotel human hundred hungry hurry idea image income island
jewel journey judge jungle kettle kind kingdom kitten ladder language laugh leader learn leather lesson letter level
liquid listen little lonely lovely lucky lunch machine magic manner marble market master matter meadow measure medal
memory message middle minute mirror mistake mixture modern moment monkey morning motion muscle mystery narrow nation
nature needle nephew nervous noble noise normal notice object offer office orange order origin owner packet paint
paper parent partner passage patient pattern pencil people pepper perfect person picture pillow pirate pleasure
pocket poetry polite powder power present pretty prince prison problem promise proof proper protect proud public
puzzle quality quarter question quick quiet rabbit railway reason record regular remember repair reply report rescue
result return reward ribbon riddle rocket royal rubber saddle safety sample sand scale science search season second
secret servant shadow shallow shelter shine shoulder signal silence simple single sister skill sleep slender smile
smooth soldier solid sorrow sound spirit spoon square stage station steam stone storm strange stream street strength
string strong student sudden sugar summer supper supply surface system target temple tender theatre thought thread
throat thunder ticket tiger timber tongue travel treasure trouble trust tunnel turtle uncle united useful valley
value velvet victory village violet visit voice volume voyage wagon wander weather weight welcome whisper whistle
window hello world please thanks python computer banana winner winter wisdom wonder wooden world worry worth write yellow zebra
"""
_STARTS = (
    "b c d f g h j k l m n p r s t v w z bl br ch cl cr dr fl fr gl gr pl pr sc sh sk sl sm sn sp st sw th tr".split()
)
_MIDDLES = "a e i o u a e i o u ai ea ee oa oo ou".split()
_ENDS = "b d g k l m n p r s t x ck ll nd nk nt rd rk rn st".split()

WORDS: tuple[str, ...] = tuple(
    sorted(
        {
            word
            for source in (
                _MORE.split(),
                DEFINITIONS,
                PLURALS,
                (w for pair in OPPOSITES for w in pair),
                (item for category in CATEGORIES for item in category.items),
            )
            for word in source
            if word.isalpha() and word.islower() and len(word) > 1
        }
    )
)
NAMES = tuple(
    "Anna Ben Carla David Emma Felix Grace Henry Ida Jack Kate Leo Maria Nina Oscar Paul Quinn Rosa Sam Tom Uma Victor "
    "Wendy Xavier Yara Zoe Alice Bob Charlie Diana Erik Fatima George Hana Ivan Julia Kofi Lara Mina Noah Olga Peter Ravi "
    "Sara Tariq Lily Max Mia Liam Omar Lucy John Mary James Linda Mark Susan Alex Chris".split()
)


def made_up(rng: Random, syllables: tuple[int, ...] = (1, 2, 2, 3)) -> str:
    """A pronounceable made-up word of one to three syllables."""
    parts = (
        rng.choice(_STARTS) + rng.choice(_MIDDLES) + (rng.choice(_ENDS) if rng.random() < 0.6 else "")
        for _ in range(rng.choice(syllables))
    )
    return "".join(parts)


def any_word(rng: Random) -> str:
    """Usually a common word, sometimes a made-up word or a name."""
    kind = rng.random()
    if kind < 0.65:
        return rng.choice(WORDS)
    return made_up(rng, (1, 1, 2)) if kind < 0.9 else rng.choice(NAMES)


def with_article(noun: str) -> str:
    """``noun`` with its article, as ``an apple``; an existing article stays."""
    return noun if noun.startswith(("a ", "an ", "the ")) else f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
