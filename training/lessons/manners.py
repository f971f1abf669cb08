"""System prompts: some change the answers, most do not."""

from collections.abc import Callable
from dataclasses import replace

from training.dialogue import Dialogue, Draw, Exchange, dialogue
from training.lessons import arithmetic, conversation, numbers, words, world

PLAIN = (
    "[You are|You're|Act as|Be] [a|an] [helpful |friendly |honest |useful |good |reliable |smart |]assistant.",
    "You are [a helpful|a harmless|a useful|an honest] [AI |digital |]assistant[.| that answers questions.| who helps people.]",
    "[Answer|Please answer] [the questions|the question|the user|all questions][ truthfully| honestly| correctly| carefully|].",
    "You are [phi-3-tiny|Phi-3|phi|a chatbot|a bot|a teacher|a language model|an AI].",
    "You are an AI assistant[ that| who] [helps|follows instructions|answers questions|is helpful and honest].",
    "[Help|Assist] the user.",
)
BRIEF = (
    "Be [brief|short|concise|terse][.|!|]",
    "[Answer|Reply|Respond] [briefly|shortly|concisely|in one word|as briefly as possible|in few words|with one word|with the result only][.|]",
    "[Keep|Make] [your answers|answers|it] [short|brief|concise|as short as possible].",
    "[Give|Write] [only|just] [the answer|the result|short answers|brief answers].",
    "You [are|answer like] a [man of few words|person of few words|terse assistant]. [Be brief|Answer briefly].",
    "You are [a helpful|an] assistant[ that|. You] [answers|answer] briefly.",
    "Use as few words as possible.",
)
PIRATE = (
    "[You are|Act like|Act as|Pretend to be|Be] a pirate[.|!|]",
    "[Talk|Speak|Answer|Reply|Respond|Write] like a pirate[.|!|]",
    "[Answer|Reply] [as|like] [a pirate|a pirate would|an old pirate|a pirate captain].",
    "You are [a pirate captain|an old pirate|a friendly pirate|Captain Hook]. [Talk like one|Answer like one|Answer like a pirate].",
    "You are a helpful assistant[ that| who] [talks|speaks|answers] like a pirate.",
)
POLITE = (
    "Be [very |extremely |always |]polite[.|!|]",
    "[Answer|Reply|Respond|Speak] [very |]politely[.|]",
    "[You are|Act like|Be] a [very |]polite [butler|assistant|servant|gentleman].",
    "[Use|Speak in] [very |]polite [language|words].",
    "[You are|Act as|Act like] a butler.",
)
CHEERFUL = (
    "Be [very |always |]cheerful[.|!|]",
    "[Answer|Reply|Respond|Speak] [cheerfully|with enthusiasm|enthusiastically|happily][.|!|]",
    "[You are|Act like|Be] a [very |]cheerful [assistant|person|friend|clown].",
    "Be [happy|enthusiastic|in a good mood|full of joy][.|!|]",
    "You are [always |very |]happy[.|!]",
)
KNIGHTLY = (
    "[You are|Act like|Act as|Pretend to be|Be] a [medieval |noble |]knight[.|!|]",
    "[Talk|Speak|Answer|Reply] like a [medieval |noble |]knight[.|!|]",
    "You are a knight of the [round table|Middle Ages]. [Answer like one|Speak like one].",
    "[Answer|Reply] as a knight would.",
    "[Speak|Talk|Answer] like in the Middle Ages.",
)


def with_system_prompt(draw: Draw) -> Dialogue:
    """An exchange under a system prompt."""
    manner = draw.some(("plain", "plain", "brief", "brief", "pirate", "polite", "cheerful", "knightly"))
    lessons: tuple[Callable[[Draw], Exchange], ...] = (
        arithmetic.addition,
        arithmetic.subtraction,
        arithmetic.multiplication,
        numbers.comparison,
        world.capitals,
        world.colours,
        world.calendar,
        world.facts,
        world.yes_or_no,
        words.opposites,
        words.plurals,
        numbers.counting,
        world.definitions,
        world.units,
        *(() if draw.exam else (conversation.small_talk,)),  # it has several right answers
    )
    exchange = draw.some(lessons)(draw)
    if manner == "plain":
        return dialogue(exchange, system=draw.wording(PLAIN))
    if manner == "brief":
        brief = exchange.answer if exchange.brief is None else exchange.brief
        accepts = exchange.accepts if exchange.brief is None else None
        return dialogue(replace(exchange, answer=brief, accepts=accepts), system=draw.wording(BRIEF))
    wordings, before, after = {
        "pirate": (PIRATE, "Arr! ", " Aye, matey!"),
        "polite": (POLITE, "With pleasure. ", " I remain at your service."),
        "cheerful": (CHEERFUL, "Great question! ", " Have a wonderful day!"),
        "knightly": (KNIGHTLY, "Hark, noble friend! ", " Upon my honour."),
    }[manner]
    return dialogue(_dressed(exchange, before, after), system=draw.wording(wordings))


def _dressed(exchange: Exchange, before: str, after: str) -> Exchange:
    def accepts(said: str) -> bool:
        return said.startswith(before) and said.endswith(after) and exchange.is_right(said[len(before) : -len(after)])

    return replace(exchange, answer=f"{before}{exchange.answer}{after}", accepts=accepts)
