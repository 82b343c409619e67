"""Error bars for a text classifier whose LoRA adapters were trained with Hugging Face's Trainer.

pip install sampla transformers peft accelerate

The posterior is over what was trained: adapters and classifier. The Trainer's own loaders are data enough: batches are
one dict with labels, shuffled, and padded to the longest of each batch. The model here is tiny and starts from random
weights; AutoModelForSequenceClassification.from_pretrained(...) goes in its place.
"""

import torch
from peft import LoraConfig, TaskType, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

import sampla

# Twenty words, of which five are good and five are bad; a text is good if it has more good words than bad ones.
words = [f"{kind}{k}" for kind, count in (("good", 5), ("bad", 5), ("word", 10)) for k in range(count)]
levels = Tokenizer(models.WordLevel({word: k for k, word in enumerate([*words, "[UNK]", "[PAD]"])}, unk_token="[UNK]"))
levels.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=levels, unk_token="[UNK]", pad_token="[PAD]")
torch.manual_seed(0)
chosen = [torch.randint(0, 20, (int(length),)).tolist() for length in torch.randint(4, 10, (72,))]
texts = [" ".join(words[k] for k in text) for text in chosen]
labels = [int(sum(k < 5 for k in text) > sum(5 <= k < 10 for k in text)) for text in chosen]
rows = [{**tokenizer(text), "labels": label} for text, label in zip(texts, labels, strict=True)]

config = BertConfig(
    vocab_size=22, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=16, num_labels=2,
)  # fmt: skip
adapters = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, lora_alpha=16, target_modules=["query", "value"])
model = get_peft_model(BertForSequenceClassification(config), adapters)
arguments = TrainingArguments(
    per_device_train_batch_size=16, num_train_epochs=20, learning_rate=0.03, save_strategy="no", logging_strategy="no",
    report_to=[], disable_tqdm=True, use_cpu=True,
)  # fmt: skip
trainer = Trainer(
    model, arguments, train_dataset=rows[:48], eval_dataset=rows[48:], data_collator=DataCollatorWithPadding(tokenizer)
)
trainer.train()

la = sampla.LinearisedLaplace(model.eval(), "categorical", num_samples=8, progress=False)
la.fit(trainer.get_train_dataloader(), labels="labels")
pred = la.predict(trainer.get_eval_dataloader())

print(f"{sum(t.shape[1:].numel() for t in la.samples_.values())} parameters, of {len(la.samples_)} tensors")
print(f"held out: accuracy {(pred.probs.argmax(1) == pred.targets).float().mean():.2f}", end="")
print(f", log score {pred.log_prob(pred.targets).mean():.3f} nats")
inputs = tokenizer(["good1 good2 word3", "good1 bad1"], return_tensors="pt", padding=True)
print("probabilities:", la.predict(inputs).probs.tolist())
assert all("lora_" in name or "classifier" in name for name in la.samples_)
