"""The defaults of generate parameters: those of KAITO's ``/chat``, and those of transformers."""

from phi3_serve.parameters import GenerationParameters

# From KAITO's inference_api.py, the last version with /chat. The end-of-sequence tokens are the model's own.
CHAT_DEFAULTS = GenerationParameters(
    max_length=200,
    min_length=0,
    do_sample=True,
    early_stopping=False,
    num_beams=1,
    temperature=1.0,
    top_k=10,
    top_p=1.0,
    typical_p=1.0,
    repetition_penalty=1.0,
)

# transformers 5.23, GenerationConfig._get_default_generation_params. The model's own generation config overrides them.
# max_length is missing on purpose: without it and max_new_tokens, an answer has LIBRARY_DEFAULT_NEW_TOKENS.
LIBRARY_DEFAULTS = GenerationParameters(
    min_length=0,
    do_sample=False,
    early_stopping=False,
    num_beams=1,
    num_beam_groups=1,
    diversity_penalty=0.0,
    temperature=1.0,
    top_k=50,
    top_p=1.0,
    typical_p=1.0,
    epsilon_cutoff=0.0,
    eta_cutoff=0.0,
    repetition_penalty=1.0,
    encoder_repetition_penalty=1.0,
    length_penalty=1.0,
    no_repeat_ngram_size=0,
    encoder_no_repeat_ngram_size=0,
    num_return_sequences=1,
    output_scores=False,
    return_dict_in_generate=False,
    renormalize_logits=False,
    remove_invalid_values=False,
)
LIBRARY_DEFAULT_NEW_TOKENS = 20
