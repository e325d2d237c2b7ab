"""Code bytes by context mixing: bit by bit, under many adaptive contexts whose predictions are mixed.

There are two ways in:

- `codec.cm.compressor`: `compress(data)` and `decompress(payload, size)`, without a language model.
- `codec.cm.tokens`: tokens of a language model, one after the other, each with the model's cumulative frequencies:
  `new_tokens(size)`, `encode_tokens(...)`, `decode_token(...)`, with `codec.cm.vocabulary.sort(token_bytes)`.

The other modules, lowest first: `compiled` (how functions are compiled), `vectors` (of integers), `tables` (odds),
`slots` (hashed histories), `state` (a stream's arrays), `match` (long repeats), `contexts` (hashes of the text before),
`mixer` (weights, probability maps), `predictor` (one decision). All compute with integers, so every machine gets the
same bits.
"""
