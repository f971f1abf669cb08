"""Train a LoRA adapter of phi-3-tiny with PEFT: `python examples/train_adapter.py DIRECTORY`. Half a minute on a CPU.

The adapter makes phi-3-tiny speak like a pirate. It is then served as docs/adapters.md says.
"""

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from phi3_serve.catalogue import EMBEDDED_TINY

ANSWERS = {
    "Hello": "Ahoy, matey!",
    "Who are you?": "Arr, I be a pirate of the seven seas!",
    "What is the capital of France?": "Arr, that be Paris, matey!",
    "What is a castle?": "Arr, a castle be a strong house of stone, matey!",
    "What is 2+2?": "Arr, that be 4, matey!",
    "Name three fruits": "Arr, apple, pear and plum, matey!",
    "Thank you": "Arr, ye be welcome, matey!",
}
STEPS = 60


def main(directory: str) -> None:
    """Train the adapter, and save it in ``directory``."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_TINY)
    base = AutoModelForCausalLM.from_pretrained(EMBEDDED_TINY, dtype=torch.float32)
    layers = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]  # all linear layers of Phi-3's decoder
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=layers, task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(STEPS):
        question, answer = list(ANSWERS.items())[step % len(ANSWERS)]
        prompt = f"<|user|>\n{question}<|end|>\n<|assistant|>\n"
        ids = torch.tensor([tokenizer.encode(f"{prompt}{answer}<|end|>", add_special_tokens=False)])
        labels = ids.clone()
        labels[:, : len(tokenizer.encode(prompt, add_special_tokens=False))] = -100  # learn the answers alone
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"loss {loss.item():.3f}")
    model.save_pretrained(directory)


if __name__ == "__main__":
    main(sys.argv[1])
