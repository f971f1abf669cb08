"""Text to token ids, and back. Text in a conversation never becomes a control token.

A raw prompt goes through the checkpoint's tokenizer as it is. A conversation goes through a twin of it that knows the
control tokens only under names drawn at random when it is made. The names stand where the chat template wrote the
tokens. Text can spell ``<|end|>`` but not the twin's name for it, so it stays text, and everything else (the whitespace
that a control token swallows, the normaliser, the place of the space prefix) is the tokenizer's own work.
"""

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

import tokenizers
from transformers import PreTrainedTokenizerBase

from phi3_serve.core.prompt import Conversation, Prompt, RawPrompt, TokenPrompt
from phi3_serve.core.tokenization import Token, TokenizationRequest
from phi3_serve.errors import CheckpointError, InvalidRequest, PromptTooLong
from phi3_serve.resolved_parameters import ResolvedParameters
from phi3_serve.text.chat_template import ChatTemplate, Example
from phi3_serve.text.detokenize import Detokenizer, TextStream
from phi3_serve.text.fewest_tokens import FewestTokens
from phi3_serve.text.stop import StopText
from phi3_serve.text.token_limit import TokenLimit
from phi3_serve.text.token_places import Place, TokenPlaces
from phi3_serve.text.traced import Traced, written_matches

FEW_CHARACTERS = 2**15  # encoding them takes 25 ms
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


class Phi3Tokenizer:
    """A Phi-3 checkpoint's tokenizer. Its options never change, so threads may share it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Compile the chat template of ``tokenizer``, and make the twin.

        Raises:
            CheckpointError: the chat template cannot be used.
        """
        backend: tokenizers.Tokenizer = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        self.template = ChatTemplate(tokenizer)
        examples = self.template.examples()
        control_tokens = _control_tokens(tokenizer, self.template, examples)
        names = {token: f"\N{OBJECT REPLACEMENT CHARACTER}{secrets.token_hex(16)}" for token in control_tokens}
        self._tokenizer = backend
        self._fewest_tokens = FewestTokens(backend)
        self._names = names
        # The longest comes first, as in the tokenizer. Without a control token it matches nothing.
        self._spelled = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")
        self._check_origins(examples)
        self._twin = _twin(backend, names)
        real_names = {name: token for token, name in names.items()}
        self._to_real_id = {
            twin_id: cast(int, backend.token_to_id(real_names.get(token.content, token.content)))
            for twin_id, token in self._twin.get_added_tokens_decoder().items()
        }
        self.control_ids = frozenset(i for i, token in backend.get_added_tokens_decoder().items() if token.special)
        self.end_of_turn_ids = frozenset(cast(int, backend.token_to_id(t)) for t in self._ends_of_turns(examples))
        """What the chat template writes after an assistant's turn. It ends an answer to a conversation."""
        vocabulary = backend.get_vocab()
        self._visible_ids = frozenset(vocabulary.values()) - self.control_ids
        self._pieces: dict[int, bytes] = {}  # of the token ids that were asked for
        self.drops_first_space = not any(map(self._begins_with_space, _with_first_space(vocabulary)))
        """Whether the text of token ids loses the space that its first token begins with."""
        self._byte_ids = frozenset(i for token, i in vocabulary.items() if _BYTE_TOKEN.fullmatch(token))

    def encode(self, prompt: Prompt, *, limit: TokenLimit | None = None) -> list[int]:
        """The prompt's token ids. ``limit``: the tokens that it may have by its length alone; None: any number.

        Raises:
            InvalidRequest: the chat template does not take a conversation.
            PromptTooLong: a text has more tokens than ``limit`` allows. Encoding it would take seconds.
        """
        if isinstance(prompt, RawPrompt):
            text, adds = prompt.prefix + prompt.text, prompt.add_special_tokens
            self._check_length(text, limit)
            return _encode(self._tokenizer, text, add_special_tokens=adds)
        if isinstance(prompt, TokenPrompt):
            return list(prompt.token_ids)
        rendered = self._rendered(prompt)
        self._check_length("".join((rendered,)), limit)
        text = self._with_names(rendered)
        return self._encode_by_twin(text, add_special_tokens=prompt.add_special_tokens)

    def fewest_tokens(self, text: str, enough: int) -> int:
        """See ``FewestTokens.of``. Of a text that is encoded at once, 0: the number of its tokens says more."""
        return self._fewest_tokens.of(text, enough) if len(text) > FEW_CHARACTERS else 0

    def _check_length(self, text: str, limit: TokenLimit | None) -> None:
        if limit is not None and (fewest := self.fewest_tokens(text, limit.most)):
            raise PromptTooLong(f"The prompt has at least {fewest} tokens, but {limit.reason}.", "prompt")

    def tokenize(self, request: TokenizationRequest, *, limit: TokenLimit | None = None) -> tuple[str, list[int]]:
        """The text of the prompt and its token ids. The text of token ids has control tokens by their names.

        Raises:
            InvalidRequest: the chat template does not take a conversation.
            PromptTooLong: the prompt has more tokens than ``limit`` allows.
        """
        text, token_ids = self._tokenize(request, limit)
        if limit is not None and len(token_ids) > limit.most:
            raise PromptTooLong(f"The prompt has {len(token_ids)} tokens, but {limit.reason}.", "prompt")
        return text, token_ids

    def _tokenize(self, request: TokenizationRequest, limit: TokenLimit | None) -> tuple[str, list[int]]:
        prompt = request.prompt
        if isinstance(prompt, TokenPrompt):
            return self._decode_all(prompt.token_ids), list(prompt.token_ids)
        if isinstance(prompt, Conversation):
            return "".join((self._rendered(prompt),)), self.encode(prompt, limit=limit)
        text = prompt.prefix + prompt.text
        if request.finds_control_tokens:
            return text, self.encode(prompt, limit=limit)
        self._check_length(text, limit)
        return text, self._encode_by_twin(text, add_special_tokens=prompt.add_special_tokens)

    def tokens(self, token_ids: Iterable[int]) -> Iterator[Token]:
        """Each token. One that the tokenizer does not know, although the vocabulary has room for it, is empty."""
        for i in token_ids:
            yield Token(self._tokenizer.id_to_token(i) or "", self.piece(i))

    def _rendered(self, prompt: Conversation) -> Traced:
        return self.template.render(
            prompt.messages,
            add_generation_prompt=prompt.add_generation_prompt,
            continue_final_message=prompt.continue_final_message,
        )

    def _encode_by_twin(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The token ids of ``text``, in which only the twin's names are control tokens."""
        special_ids = _encode(self._tokenizer, "") if add_special_tokens else []
        twin_ids = _encode(self._twin, text, add_special_tokens=False)
        return [*special_ids, *(self._to_real_id.get(i, i) for i in twin_ids)]

    def encode_text(self, text: str) -> list[int]:
        """The token ids of ``text`` alone, without special tokens around it."""
        return _encode(self._tokenizer, text, add_special_tokens=False)

    def bad_words_ids(self, words: Iterable[str]) -> list[list[int]]:
        """The token ids of each word at the start of a text and, where they differ, after a space.

        As in ``SamplingParams.update_from_tokenizer`` of vLLM at 00388f65.

        Raises:
            InvalidRequest: a word holds no token.
        """
        found: list[list[int]] = []
        for word in dict.fromkeys(words):
            plain, spaced = (self.encode_text(before + word.lstrip()) for before in ("", " "))
            if not plain:
                raise InvalidRequest(f"`bad_words` holds {word!r}, which has no token.", "bad_words")
            found.append(plain)
            if spaced and spaced[0] != plain[0] and len(spaced) == len(plain):
                found.append(spaced)
        return found

    def _with_names(self, rendered: Traced) -> str:
        """``rendered`` with the twin's names in place of the control tokens that the template has written."""
        pieces: list[str] = []
        end = 0
        for match in written_matches(rendered, self._spelled):
            pieces += match.string[end : match.start()], self._names[match[0]]
            end = match.end()
        return "".join([*pieces, "".join((rendered,))[end:]])

    def _ends_of_turns(self, examples: Iterable[Example]) -> Iterator[str]:
        """The control tokens that directly follow what an assistant says, whitespace apart."""
        for text, said in ((e.text, m.content) for e in examples for m in e.messages if m.role == "assistant"):
            if (begin := text.find(said)) >= 0:
                end = begin + len(said)
                following = (m for m in written_matches(text, self._spelled) if m.start() >= end)
                match = next(following, None)
                if match is not None and not text[end : match.start()].strip():
                    yield match[0]

    def _check_origins(self, examples: Iterable[Example]) -> None:
        """Check that the template is known to write each control token in ``examples``, whose contents have none."""
        for example in examples:
            known = {match.span() for match in written_matches(example.text, self._spelled)}
            for match in self._spelled.finditer(example.text):
                if match.span() not in known:
                    raise CheckpointError(
                        f"{self.template.file}: chat template: it makes {match[0]!r} in a way that cannot be told "
                        "apart from text of users; write it in one piece"
                    )

    def _begins_with_space(self, token_id: int) -> bool:
        return self.decode([token_id]).startswith(" ")

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ``token_ids`` alone, without control tokens."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    def _decode_all(self, token_ids: Sequence[int]) -> str:
        """The text of ``token_ids`` alone, with control tokens by their names."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)

    def traceless_ids(self, parameters: ResolvedParameters) -> frozenset[int]:
        """The token ids that leave no trace in the text of an answer."""
        control = self.control_ids if parameters.skip_special_tokens else frozenset()
        return control | self._hidden_ends(parameters)

    def _hidden_ends(self, parameters: ResolvedParameters) -> frozenset[int]:
        """The tokens that end an answer and are no part of its text, as in vLLM (v1/engine/detokenizer.py)."""
        if parameters.include_stop_str_in_output:
            return frozenset()
        return self.control_ids.intersection(parameters.eos_token_ids).union(parameters.stop_token_ids)

    def before_answer(self, prompt: Prompt, prompt_ids: Sequence[int]) -> Sequence[int]:
        """The end of ``prompt_ids``: as many as the text of an answer depends on.

        An answer to a prompt goes on with its text, as in KAITO's pipeline (``TextGenerationPipeline.postprocess`` of
        transformers 4.55). An answer to a conversation is a text of its own, so that the space that only separates
        it from the control token is not part of it, unless it continues the last message.
        """
        if isinstance(prompt, Conversation) and not prompt.continue_final_message:
            return ()
        for start in range(len(prompt_ids) - 1, -1, -1):
            if prompt_ids[start] in self._visible_ids and prompt_ids[start] not in self._byte_ids:
                return prompt_ids[start:]
        return prompt_ids if self._byte_ids.intersection(prompt_ids) else ()

    def piece(self, token_id: int) -> bytes:
        """The bytes of a token within a text. A control token has its name, an unknown id nothing."""
        piece = self._pieces.get(token_id)
        if piece is None:
            token = self._tokenizer.id_to_token(token_id)
            piece = self._pieces[token_id] = b"" if token is None else _spelled(token)
        return piece

    def places(self, before: Sequence[int], parameters: ResolvedParameters) -> TokenPlaces:
        """Where the tokens of an answer are in its text; ``before``: see ``before_answer``."""
        return TokenPlaces(
            self.piece,
            byte_ids=self._byte_ids,
            traceless_ids=self.traceless_ids(parameters),
            before=before,
        )

    def prompt_places(self, prompt: Prompt, prompt_ids: Sequence[int]) -> tuple[str, list[Place]]:
        """The text of a prompt, and where its tokens are in it.

        A text that the model has read in full is shown as it was written. Otherwise the ids are decoded, with control
        tokens by their names.
        """
        if isinstance(prompt, RawPrompt):
            text = prompt.prefix + prompt.text
            (encoding,) = self._tokenizer.encode_batch([text], add_special_tokens=prompt.add_special_tokens)
            if encoding.ids == list(prompt_ids):
                begins = [start for start, _ in encoding.offsets[1:]] + [len(text)]
                parts = zip(encoding.ids, encoding.offsets, begins, strict=True)
                return text, [self._place(text, *part) for part in parts]
        places = TokenPlaces(self.piece, byte_ids=self._byte_ids)
        places.add(prompt_ids)
        places.finish()
        return self._decode_all(prompt_ids), places.take_all()

    def _place(self, text: str, token_id: int, span: tuple[int, int], next_start: int) -> Place:
        """A token of a written text. It is what it stands for there, unless it is one byte of a character.

        A space that the tokenizer has put before the text has the span of the first character, as its token has.
        """
        start, end = span
        if token_id in self._byte_ids or start == end:
            return Place(token_id, self.piece(token_id), start, end)
        end = end if next_start >= end else start
        return Place(token_id, text[start:end].encode(), start, end)

    def detokenizer(self, before: Sequence[int] = (), *, with_control_tokens: bool = False) -> Detokenizer:
        """A fresh detokenizer for one sequence after the token ids ``before``."""
        return Detokenizer(
            self._decode_all if with_control_tokens else self.decode,
            visible_ids=self._visible_ids | self.control_ids if with_control_tokens else self._visible_ids,
            byte_ids=self._byte_ids,
            before=before,
        )

    def stream(self, before: Sequence[int], parameters: ResolvedParameters, *, clean_up: bool) -> TextStream:
        """A fresh text stream for one answer; ``before``: see ``before_answer``."""
        return TextStream(
            self.detokenizer(before, with_control_tokens=not parameters.skip_special_tokens),
            StopText(parameters.stop, keeps_stop=parameters.include_stop_str_in_output),
            clean_up=clean_up,
            hidden_ids=self._hidden_ends(parameters),
            num_before_stop=parameters.min_new_tokens or 0,
        )


def _control_tokens(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, examples: Iterable[Example]
) -> Sequence[str]:
    """The special tokens, and the other added tokens that the template writes, except ordinary words and whitespace."""
    texts = [template.source, *map(str, tokenizer.special_tokens_map.values()), *(e.text for e in examples)]

    def is_written(token: str) -> bool:
        return not (token.isalnum() or token.isspace()) and any(token in text for text in texts)

    added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    # One character is ordinary text, also if a fine-tune pads with it.
    return [t.content for t in added if len(t.content) > 1 and (t.special or is_written(t.content))]


def _encode(tokenizer: tokenizers.Tokenizer, text: str, *, add_special_tokens: bool = True) -> list[int]:
    """Encode without Python's lock: ``encode`` keeps it for two seconds for a megabyte. No offsets are computed."""
    (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    ids: list[int] = encoding.ids
    return ids


def _with_first_space(vocabulary: Mapping[str, int]) -> list[int]:
    """The id of one token that is a word after a space, if there is one."""
    is_word = re.compile("\N{LOWER ONE EIGHTH BLOCK}[a-z]").match
    return [i for token, i in vocabulary.items() if is_word(token)][:1]


def _spelled(token: str) -> bytes:
    if _BYTE_TOKEN.fullmatch(token):
        return bytes([int(token[3:5], 16)])
    return token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()


def _is_part_of(names: Mapping[str, str], merge: str | Sequence[str]) -> bool:
    """Whether one of ``names`` is one of the two tokens of a merge, or the token that they make."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left in names or right in names or left + right in names


def _twin(tokenizer: tokenizers.Tokenizer, names: Mapping[str, str]) -> tokenizers.Tokenizer:
    """A copy of ``tokenizer`` that knows the tokens of ``names`` by these names only."""
    description = json.loads(tokenizer.to_str())
    added = description["added_tokens"]
    description["added_tokens"] = []
    description["post_processor"] = None
    model = description["model"]
    if isinstance(model["vocab"], dict):  # that no text is a control token, whatever the model makes of it
        model["vocab"] = {names.get(token, token): i for token, i in model["vocab"].items()}
        if "merges" in model:
            model["merges"] = [merge for merge in model["merges"] if not _is_part_of(names, merge)]
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    twin = tokenizers.Tokenizer.from_str(json.dumps(description))
    for t in added:
        flags = {flag: t[flag] for flag in ("single_word", "lstrip", "rstrip", "normalized")}
        if t["content"] in names:
            twin.add_special_tokens([tokenizers.AddedToken(names[t["content"]], **{**flags, "normalized": False})])
        else:
            twin.add_tokens([tokenizers.AddedToken(t["content"], **flags)])
    return twin
