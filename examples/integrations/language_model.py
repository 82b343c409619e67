"""Error bars for a causal language model, from batches as Hugging Face's collator makes them.

pip install sampla transformers accelerate

A model's outputs at a token are about the next one; ``next_tokens`` shifts the labels so, and leaves out padding,
whatever its number and on whichever side. The model is tiny and starts from random weights, the texts are letters in
order; AutoModelForCausalLM.from_pretrained(...) goes in its place, with LoRA adapters on it as in huggingface.py.
"""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

import sampla
from sampla.integrations.huggingface import next_tokens

letters = "abcdef"
levels = Tokenizer(models.WordLevel({word: k for k, word in enumerate([*letters, "?"])}, unk_token="?"))
levels.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=levels, unk_token="?", pad_token="?")
torch.manual_seed(0)
starts, lengths = torch.randint(0, 6, (24,)).tolist(), torch.randint(3, 8, (24,)).tolist()
texts = [" ".join(letters[(a + k) % 6] for k in range(n)) for a, n in zip(starts, lengths, strict=True)]  # in order

config = LlamaConfig(
    vocab_size=7, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
    bos_token_id=None, eos_token_id=None,
)  # fmt: skip
model = LlamaForCausalLM(config)
arguments = TrainingArguments(
    per_device_train_batch_size=8, num_train_epochs=10, learning_rate=0.01, save_strategy="no", logging_strategy="no",
    report_to=[], disable_tqdm=True, use_cpu=True,
)  # fmt: skip
trainer = Trainer(
    model, arguments, train_dataset=[dict(tokenizer(text)) for text in texts],
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)  # fmt: skip
trainer.train()

la = sampla.LinearisedLaplace(
    model.eval(), sampla.Categorical(ignore_index=-100), parameters="*mlp*", num_samples=8, progress=False
)
la.fit(trainer.get_train_dataloader(), unpack=next_tokens)

prompts = tokenizer(["a b c", "a a a"], return_tensors="pt")
pred = la.predict(prompts)
print("after 'a b c':", dict(zip(letters, pred.probs[0, -1].tolist(), strict=False)))
print("what more data could tell, in nats:", pred.mutual_information[:, -1].tolist())
