"""
The compiled part of modicum; import modicum instead.
"""
from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import os
import typing
__all__: list[str] = ['ABSTAIN_BELOW', 'AllOf', 'Answer', 'BeamHypothesis', 'BeamMode', 'BeamOptions', 'BeamResult', 'BeamStats', 'Branch', 'BuildOptions', 'Cancelled', 'Citation', 'Constraint', 'ContextOverflow', 'Corrupt', 'Cost', 'DeviceError', 'Document', 'EarlyStopping', 'Error', 'Expected', 'FingerprintMismatch', 'FormatError', 'GenerateResult', 'InvalidArgument', 'IoError', 'Knowledge', 'KvStatistics', 'Lexicon', 'MachineLimits', 'Model', 'ModelConfig', 'ModelScores', 'OutOfMemory', 'PhraseConstraint', 'PythonConstraint', 'SequenceBias', 'Session', 'StreamDecoder', 'TextStream', 'Tokenizer', 'Unsupported', 'WhenFull', 'active_isa', 'adopt_knowledge', 'awq_scales', 'beam', 'beam_over', 'build_knowledge', 'compare', 'extend', 'factorize', 'generate', 'gptq', 'grouped_query_sources', 'inspect_knowledge', 'keep_mask', 'lexicon_of_ids', 'lexicon_of_texts', 'logits', 'low_rank', 'machine_limits', 'merge', 'merge_arrays', 'merge_kv', 'merge_plan', 'open_lapack', 'open_lexicon', 'pack_linear', 'perplexity', 'plan_knowledge', 'project', 'quantization_json', 'quantize', 'read_bandwidth', 'refine_ffn', 'retrofit_estimate', 'retrofit_plan', 'retrofit_run', 'retrofit_survey', 'round_nearest', 'shared_prompt_ids', 'smooth_scales', 'solver', 'supported_isas', 'tensor_bytes', 'update_knowledge', 'verify_knowledge', 'warp', 'write_patch']
class Error(Exception):
    """
    Root of everything that modicum raises.
    """
class InvalidArgument(Error, ValueError):
    """
    An argument that no input could make sense of.
    """
class IoError(Error, OSError):
    """
    A file or folder that cannot be read or written.
    """
class FormatError(Error, ValueError):
    """
    A file that is not what it says it is.
    """
class Corrupt(FormatError):
    """
    A file whose checksum does not match its bytes.
    """
class FingerprintMismatch(Error, ValueError):
    """
    A knowledge cache that belongs to another model.
    """
class ContextOverflow(Error, ValueError):
    """
    More tokens than the model's context holds.
    """
class OutOfMemory(Error, MemoryError):
    """
    No memory, or no more than the bound that was set.
    """
class DeviceError(Error, RuntimeError):
    """
    An accelerator that failed.
    """
class Unsupported(Error, NotImplementedError):
    """
    A valid input that this version does not handle; names the field.
    """
class Cancelled(Error, RuntimeError):
    """
    A progress callback asked to stop.
    """
class Tokenizer:
    """
    A tokenizer.json, equal to Hugging Face ``tokenizers`` in ids and offsets.
    
    Parameters
    ----------
    path : tokenizer.json, or the folder that holds it.
    
    Raises
    ------
    IoError, FormatError, Unsupported
        For a component that is not implemented, naming it.
    """
    @staticmethod
    def parse(json: str) -> Tokenizer:
        """
        A tokenizer from the text of a tokenizer.json.
        """
    def __init__(self, path: os.PathLike | str | bytes) -> None:
        ...
    def __len__(self) -> int:
        ...
    def decode(self, ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], skip_special_tokens: bool = True) -> str:
        """
        The text of token ids; broken UTF-8 becomes U+FFFD.
        """
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """
        Token ids of `text`, with what the post-processor adds (BOS and the like) unless told otherwise.
        """
    def encode_with_offsets(self, text: str, *, add_special_tokens: bool = True) -> tuple:
        """
        Token ids, and for each the half-open range of bytes of the UTF-8 text that it stands for.
        """
    def id_of(self, token: str) -> int | None:
        """
        The id of a token as spelled in the vocabulary, or None.
        """
    def is_special(self, id: typing.SupportsInt | typing.SupportsIndex) -> bool:
        ...
    def token_of(self, id: typing.SupportsInt | typing.SupportsIndex) -> str | None:
        """
        The spelling of an id in the vocabulary, or None.
        """
    @property
    def fingerprint(self) -> str:
        """
        XXH3-128 of the tokenizer.json.
        """
class StreamDecoder:
    """
    Decodes a growing sequence of tokens, never half a character.
    
    The pieces joined equal ``tokenizer.decode`` of all the tokens.
    """
    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        ...
    def finish(self) -> str:
        """
        What is left; an incomplete character as U+FFFD.
        """
    def push(self, id: typing.SupportsInt | typing.SupportsIndex) -> str:
        """
        The text that became certain with this token, maybe empty.
        """
class MachineLimits:
    """
    What a machine can do at most with some threads and the active instruction set.
    
    A multiply-add counts as two operations; its operands are in registers.
    """
    @property
    def bf16(self) -> float:
        """
        Operations/s of bf16 products with f32 sums; without such instructions as f32.
        """
    @property
    def f32(self) -> float:
        """
        Operations/s of f32 multiply-adds.
        """
    @property
    def int8(self) -> float:
        """
        Operations/s of int8 products with int32 sums; without such instructions as f32.
        """
    @property
    def read(self) -> float:
        """
        Bytes/s of reading memory.
        """
class ModelConfig:
    """
    What config.json says of the model, in transformers' names.
    """
    @staticmethod
    def parse(text: str) -> ModelConfig:
        """
        Reads the text of a config.json; what is absent has the default of its kind of model.
        
        Raises
        ------
        FormatError, Unsupported
            Naming the field.
        """
    def __repr__(self) -> str:
        ...
    @property
    def bos_token_id(self) -> int | None:
        ...
    @property
    def eos_token_ids(self) -> list[int]:
        ...
    @property
    def head_dim(self) -> int:
        ...
    @property
    def hidden_size(self) -> int:
        ...
    @property
    def intermediate_size(self) -> int:
        ...
    @property
    def max_position_embeddings(self) -> int:
        ...
    @property
    def mlp_bias(self) -> bool:
        ...
    @property
    def model_type(self) -> str:
        ...
    @property
    def num_attention_heads(self) -> int:
        ...
    @property
    def num_hidden_layers(self) -> int:
        ...
    @property
    def num_key_value_heads(self) -> int:
        ...
    @property
    def o_bias(self) -> bool:
        ...
    @property
    def qk_norm(self) -> bool:
        ...
    @property
    def qkv_bias(self) -> bool:
        ...
    @property
    def rms_norm_eps(self) -> float:
        ...
    @property
    def sliding_window(self) -> list[int]:
        """
        Of each layer; 0 or an empty list: all keys.
        """
    @property
    def tie_word_embeddings(self) -> bool:
        ...
    @property
    def vocab_size(self) -> int:
        ...
class Branch:
    """
    A prefix that a model has read: a handle on a node of its tree of keys and values.
    
    Extending shares the prefix, it copies nothing. When the last handle below a node goes, its memory returns at once.
    """
    def __len__(self) -> int:
        ...
    def __repr__(self) -> str:
        ...
    def extend(self, ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], *, progress: typing.Any = None) -> Branch:
        """
        Reads `ids` after this prefix and returns the new leaf.
        
        Raises
        ------
        ContextOverflow
            Before any work, where the path would be longer than the model's context.
        InvalidArgument
            For no ids, or one outside the vocabulary.
        """
    def logits(self) -> numpy.typing.NDArray[numpy.float32]:
        """
        Logits of the token after this prefix: float32 [vocabulary].
        """
    @property
    def tokens(self) -> list[int]:
        """
        The token ids from the root to here.
        """
class Model:
    def __init__(self, path: os.PathLike | str | bytes, *, dtype: str = 'auto', threads: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
        ...
    def logits(self, ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], *, progress: typing.Any = None) -> numpy.typing.NDArray[numpy.float32]:
        ...
    def tree(self, *, max_kv_bytes: typing.SupportsInt | typing.SupportsIndex = 0) -> Branch:
        ...
    @property
    def config(self) -> ModelConfig:
        ...
    @property
    def dtype(self) -> str:
        ...
    @property
    def fingerprint(self) -> str:
        ...
    @property
    def kv_bytes_per_token(self) -> int:
        ...
    @property
    def multiply_adds_per_token(self) -> int:
        ...
    @property
    def parameters(self) -> int:
        ...
    @property
    def path(self) -> str:
        ...
    @property
    def quantization(self) -> str | None:
        ...
    @property
    def threads(self) -> int:
        ...
    @property
    def tokenizer(self) -> Tokenizer:
        ...
    @property
    def weight_bytes(self) -> int:
        ...
    @property
    def weight_bytes_per_token(self) -> int:
        ...
class GenerateResult:
    @property
    def finish_reason(self) -> str:
        ...
    @property
    def ids(self) -> list[int]:
        ...
    @property
    def log_probabilities(self) -> list[float]:
        ...
    @property
    def text(self) -> str:
        ...
class TextStream:
    """
    The text of a growing answer, whole characters, up to a stop string.
    """
    def __init__(self, tokenizer: Tokenizer, stop: collections.abc.Sequence[str]) -> None:
        ...
    def finish(self) -> str:
        """
        The rest, when no token follows.
        """
    def push(self, id: typing.SupportsInt | typing.SupportsIndex) -> str:
        """
        The text that became certain with this token.
        """
class Constraint:
    """
    Which texts a search may write; made by modicum.search.
    """
    def __repr__(self) -> str:
        ...
class PythonConstraint(Constraint):
    def __init__(self, automaton: typing.Any) -> None:
        ...
class PhraseConstraint(Constraint):
    def __init__(self, model: Model, *, banned: collections.abc.Sequence[str], required: collections.abc.Sequence[str], ignore_case: bool) -> None:
        ...
class AllOf(Constraint):
    def __init__(self, parts: collections.abc.Sequence[Constraint]) -> None:
        ...
class EarlyStopping:
    """
    Members:
    
      no
    
      yes
    
      never
    """
    __members__: typing.ClassVar[dict[str, EarlyStopping]]
    never: typing.ClassVar[EarlyStopping]
    no: typing.ClassVar[EarlyStopping]
    yes: typing.ClassVar[EarlyStopping]
    @typing.overload
    def __eq__(self, other: EarlyStopping) -> bool:
        ...
    @typing.overload
    def __eq__(self, other: typing.Any) -> bool:
        ...
    def __getstate__(self) -> int:
        ...
    def __hash__(self) -> int:
        ...
    def __index__(self) -> int:
        ...
    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __int__(self) -> int:
        ...
    @typing.overload
    def __ne__(self, other: EarlyStopping) -> bool:
        ...
    @typing.overload
    def __ne__(self, other: typing.Any) -> bool:
        ...
    def __repr__(self) -> str:
        ...
    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __str__(self) -> str:
        ...
    @property
    def name(self) -> str:
        ...
    @property
    def value(self) -> int:
        ...
class BeamMode:
    """
    Members:
    
      transformers
    
      native
    """
    __members__: typing.ClassVar[dict[str, BeamMode]]
    native: typing.ClassVar[BeamMode]
    transformers: typing.ClassVar[BeamMode]
    @typing.overload
    def __eq__(self, other: BeamMode) -> bool:
        ...
    @typing.overload
    def __eq__(self, other: typing.Any) -> bool:
        ...
    def __getstate__(self) -> int:
        ...
    def __hash__(self) -> int:
        ...
    def __index__(self) -> int:
        ...
    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __int__(self) -> int:
        ...
    @typing.overload
    def __ne__(self, other: BeamMode) -> bool:
        ...
    @typing.overload
    def __ne__(self, other: typing.Any) -> bool:
        ...
    def __repr__(self) -> str:
        ...
    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __str__(self) -> str:
        ...
    @property
    def name(self) -> str:
        ...
    @property
    def value(self) -> int:
        ...
class ModelScores:
    """
    Members:
    
      logits
    
      log_probabilities
    """
    __members__: typing.ClassVar[dict[str, ModelScores]]
    log_probabilities: typing.ClassVar[ModelScores]
    logits: typing.ClassVar[ModelScores]
    @typing.overload
    def __eq__(self, other: ModelScores) -> bool:
        ...
    @typing.overload
    def __eq__(self, other: typing.Any) -> bool:
        ...
    def __getstate__(self) -> int:
        ...
    def __hash__(self) -> int:
        ...
    def __index__(self) -> int:
        ...
    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __int__(self) -> int:
        ...
    @typing.overload
    def __ne__(self, other: ModelScores) -> bool:
        ...
    @typing.overload
    def __ne__(self, other: typing.Any) -> bool:
        ...
    def __repr__(self) -> str:
        ...
    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __str__(self) -> str:
        ...
    @property
    def name(self) -> str:
        ...
    @property
    def value(self) -> int:
        ...
class WhenFull:
    """
    Members:
    
      fail
    
      narrow
    """
    __members__: typing.ClassVar[dict[str, WhenFull]]
    fail: typing.ClassVar[WhenFull]
    narrow: typing.ClassVar[WhenFull]
    @typing.overload
    def __eq__(self, other: WhenFull) -> bool:
        ...
    @typing.overload
    def __eq__(self, other: typing.Any) -> bool:
        ...
    def __getstate__(self) -> int:
        ...
    def __hash__(self) -> int:
        ...
    def __index__(self) -> int:
        ...
    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __int__(self) -> int:
        ...
    @typing.overload
    def __ne__(self, other: WhenFull) -> bool:
        ...
    @typing.overload
    def __ne__(self, other: typing.Any) -> bool:
        ...
    def __repr__(self) -> str:
        ...
    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __str__(self) -> str:
        ...
    @property
    def name(self) -> str:
        ...
    @property
    def value(self) -> int:
        ...
class SequenceBias:
    def __init__(self, ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], bias: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
class BeamOptions:
    """
    Fields as modicum.search.beam takes them.
    """
    early_stopping: EarlyStopping
    keep_states: bool
    mode: BeamMode
    scores: ModelScores
    when_full: WhenFull
    def __init__(self) -> None:
        ...
    def set_sampling(self, *, temperature: typing.SupportsFloat | typing.SupportsIndex, top_k: typing.SupportsInt | typing.SupportsIndex, top_p: typing.SupportsFloat | typing.SupportsIndex, min_p: typing.SupportsFloat | typing.SupportsIndex, seed: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def bad_words(self) -> list[list[int]]:
        ...
    @bad_words.setter
    def bad_words(self, arg0: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]]) -> None:
        ...
    @property
    def beams(self) -> int:
        ...
    @beams.setter
    def beams(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def begin_suppress(self) -> list[int]:
        ...
    @begin_suppress.setter
    def begin_suppress(self, arg0: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> None:
        ...
    @property
    def diversity_penalty(self) -> float:
        ...
    @diversity_penalty.setter
    def diversity_penalty(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def forced_bos(self) -> int | None:
        ...
    @forced_bos.setter
    def forced_bos(self, arg0: typing.SupportsInt | typing.SupportsIndex | None) -> None:
        ...
    @property
    def forced_eos(self) -> list[int]:
        ...
    @forced_eos.setter
    def forced_eos(self, arg0: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> None:
        ...
    @property
    def groups(self) -> int:
        ...
    @groups.setter
    def groups(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def length_penalty(self) -> float:
        ...
    @length_penalty.setter
    def length_penalty(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def max_new_tokens(self) -> int:
        ...
    @max_new_tokens.setter
    def max_new_tokens(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def min_new_tokens(self) -> int:
        ...
    @min_new_tokens.setter
    def min_new_tokens(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def no_repeat_ngram_size(self) -> int:
        ...
    @no_repeat_ngram_size.setter
    def no_repeat_ngram_size(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def num_return(self) -> int:
        ...
    @num_return.setter
    def num_return(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def repetition_penalty(self) -> float:
        ...
    @repetition_penalty.setter
    def repetition_penalty(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def sequence_bias(self) -> list[SequenceBias]:
        ...
    @sequence_bias.setter
    def sequence_bias(self, arg0: collections.abc.Sequence[SequenceBias]) -> None:
        ...
    @property
    def stop(self) -> list[str]:
        ...
    @stop.setter
    def stop(self, arg0: collections.abc.Sequence[str]) -> None:
        ...
    @property
    def stop_ids(self) -> list[int]:
        ...
    @stop_ids.setter
    def stop_ids(self, arg0: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> None:
        ...
    @property
    def suppress(self) -> list[int]:
        ...
    @suppress.setter
    def suppress(self, arg0: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> None:
        ...
class BeamHypothesis:
    @property
    def finish_reason(self) -> str:
        ...
    @property
    def ids(self) -> list[int]:
        ...
    @property
    def log_probabilities(self) -> list[float]:
        ...
    @property
    def node(self) -> int:
        ...
    @property
    def score(self) -> float:
        ...
class BeamStats:
    """
    What a search took.
    """
    @property
    def peak_tokens(self) -> int:
        """
        The most that live beams held at once after the prompt, shared ones once.
        """
    @property
    def rows(self) -> int:
        """
        Tokens that the model read after the prompt.
        """
    @property
    def steps(self) -> int:
        """
        Tokens of the longest beam.
        """
    @property
    def width(self) -> int:
        """
        Beams at the end: fewer than asked for where memory was short.
        """
class BeamResult:
    @property
    def hypotheses(self) -> list[BeamHypothesis]:
        ...
    @property
    def log_probabilities(self) -> numpy.typing.NDArray[numpy.float32]:
        ...
    @property
    def parents(self) -> numpy.typing.NDArray[numpy.int64]:
        ...
    @property
    def scores(self) -> numpy.typing.NDArray[numpy.float32]:
        ...
    @property
    def states(self) -> list[Branch]:
        ...
    @property
    def stats(self) -> BeamStats:
        ...
    @property
    def tokens(self) -> numpy.typing.NDArray[numpy.int64]:
        ...
class Lexicon(Constraint):
    """
    The arrays of modicum.search.Lexicon.
    """
    def __init__(self, lexicon: Lexicon) -> None:
        ...
    def __len__(self) -> int:
        ...
    def _entry(self, index: typing.SupportsInt | typing.SupportsIndex) -> list[int]:
        ...
    def _find(self, ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> int | None:
        ...
    def _positions(self, index: typing.SupportsInt | typing.SupportsIndex) -> list[int]:
        ...
    def save(self, path: os.PathLike | str | bytes) -> None:
        """
        Writes a safetensors file, whole or not at all, mode 0600.
        
        Raises
        ------
        IoError
        """
    @property
    def inputs(self) -> int:
        """
        How many entries it was built from, repetitions included.
        """
    @property
    def largest_token(self) -> int:
        ...
    @property
    def nbytes(self) -> int:
        """
        Bytes of the arrays, in memory or mapped.
        """
    @property
    def nodes(self) -> int:
        """
        Nodes of the trie.
        """
    @property
    def prefix(self) -> str:
        """
        What was put before each text when it was encoded.
        """
    @property
    def tokenizer_fingerprint(self) -> str:
        """
        Of the tokenizer that made the entries; empty where they came as ids alone.
        """
class Document:
    """
    A text that questions are asked about.
    """
    def __init__(self, name: str, source: str, text: str, pages: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], converted: bool, volatile: bool) -> None:
        ...
    @property
    def converted(self) -> bool:
        ...
    @property
    def name(self) -> str:
        ...
    @property
    def pages(self) -> list[int]:
        ...
    @property
    def source(self) -> str:
        ...
    @property
    def text(self) -> str:
        ...
    @property
    def volatile(self) -> bool:
        ...
class Citation:
    """
    The line of a document that supports an answer.
    """
    def __repr__(self) -> str:
        ...
    @property
    def attention(self) -> float:
        """
        Share of the documents' attention that lay on the line while answering.
        """
    @property
    def bytes(self) -> tuple[int, int]:
        """
        Half-open byte range of the line in the text: of the file itself unless `converted`.
        """
    @property
    def converted(self) -> bool:
        """
        The text was made from a file of another kind.
        """
    @property
    def document(self) -> str:
        ...
    @property
    def heading(self) -> str:
        """
        The nearest heading above the line, or ''.
        """
    @property
    def line(self) -> int:
        """
        Counted from 1.
        """
    @property
    def literal(self) -> bool:
        """
        The line holds the answer word for word.
        """
    @property
    def page(self) -> typing.Any:
        """
        Of the original, counted from 1; None where it has no pages.
        """
    @property
    def quote(self) -> str:
        """
        The line: exactly those bytes.
        """
    @property
    def source(self) -> str:
        ...
class Cost:
    """
    What an answer took: tokens and seconds.
    """
    @property
    def cached_tokens(self) -> int:
        """
        Of the documents, from the file.
        """
    @property
    def cite_seconds(self) -> float:
        """
        Finding where the answer stands.
        """
    @property
    def compose_seconds(self) -> float:
        """
        Choosing segments, putting them together.
        """
    @property
    def computed_tokens(self) -> int:
        """
        Of the documents, computed for this question: beginnings of moved segments.
        """
    @property
    def decode_seconds(self) -> float:
        ...
    @property
    def new_tokens(self) -> int:
        ...
    @property
    def prefill_seconds(self) -> float:
        ...
    @property
    def question_tokens(self) -> int:
        ...
    @property
    def verify_seconds(self) -> float:
        """
        Comparing checksums, once a process.
        """
class Answer:
    """
    An answer with its citations and cost.
    """
    def __repr__(self) -> str:
        ...
    def __str__(self) -> str:
        ...
    @property
    def abstained(self) -> bool:
        """
        The confidence is below the threshold: the documents do not say.
        """
    @property
    def citations(self) -> list[Citation]:
        ...
    @property
    def confidence(self) -> float:
        """
        0 to 1: the geometric mean of the tokens' probabilities, half of it where the answer is cited by most of its words only, 0 where no line supports it.
        """
    @property
    def cost(self) -> Cost:
        ...
    @property
    def finish_reason(self) -> str:
        ...
    @property
    def ids(self) -> list[int]:
        ...
    @property
    def log_probabilities(self) -> list[float]:
        ...
    @property
    def selected(self) -> list[str]:
        """
        Documents attended to, where not all were.
        """
    @property
    def text(self) -> str:
        ...
class Session:
    def __len__(self) -> int:
        ...
    def ask(self, question: str, *, max_new_tokens: typing.SupportsInt | typing.SupportsIndex = 64, temperature: typing.SupportsFloat | typing.SupportsIndex = 0.0, top_k: typing.SupportsInt | typing.SupportsIndex = 0, top_p: typing.SupportsFloat | typing.SupportsIndex = 1.0, min_p: typing.SupportsFloat | typing.SupportsIndex = 0.0, repetition_penalty: typing.SupportsFloat | typing.SupportsIndex = 1.0, seed: typing.SupportsInt | typing.SupportsIndex = 0, stop: collections.abc.Sequence[str] = [], cite: bool = True, abstain_below: typing.SupportsFloat | typing.SupportsIndex | None = None, most_segments: typing.SupportsInt | typing.SupportsIndex = 0, beams: typing.SupportsInt | typing.SupportsIndex = 1, length_penalty: typing.SupportsFloat | typing.SupportsIndex = 1.0, callback: typing.Any = None) -> Answer:
        ...
    def reset(self) -> None:
        ...
    @property
    def turns(self) -> int:
        ...
class Knowledge:
    @staticmethod
    def open(path: os.PathLike | str | bytes, model: Model) -> Knowledge:
        ...
    def __len__(self) -> int:
        ...
    def arrays(self) -> tuple:
        ...
    def ask(self, question: str, *, max_new_tokens: typing.SupportsInt | typing.SupportsIndex = 64, temperature: typing.SupportsFloat | typing.SupportsIndex = 0.0, top_k: typing.SupportsInt | typing.SupportsIndex = 0, top_p: typing.SupportsFloat | typing.SupportsIndex = 1.0, min_p: typing.SupportsFloat | typing.SupportsIndex = 0.0, repetition_penalty: typing.SupportsFloat | typing.SupportsIndex = 1.0, seed: typing.SupportsInt | typing.SupportsIndex = 0, stop: collections.abc.Sequence[str] = [], cite: bool = True, abstain_below: typing.SupportsFloat | typing.SupportsIndex | None = None, most_segments: typing.SupportsInt | typing.SupportsIndex = 0, beams: typing.SupportsInt | typing.SupportsIndex = 1, length_penalty: typing.SupportsFloat | typing.SupportsIndex = 1.0, callback: typing.Any = None) -> Answer:
        ...
    def ask_many(self, questions: collections.abc.Sequence[str], *, max_new_tokens: typing.SupportsInt | typing.SupportsIndex = 64, temperature: typing.SupportsFloat | typing.SupportsIndex = 0.0, seed: typing.SupportsInt | typing.SupportsIndex = 0, stop: collections.abc.Sequence[str] = [], cite: bool = True, abstain_below: typing.SupportsFloat | typing.SupportsIndex | None = None, most_segments: typing.SupportsInt | typing.SupportsIndex = 0, beams: typing.SupportsInt | typing.SupportsIndex = 1, length_penalty: typing.SupportsFloat | typing.SupportsIndex = 1.0) -> list[Answer]:
        ...
    def branch(self) -> Branch:
        """
        The branch at the end of the documents; extend it with `question_ids` or anything else.
        """
    def describe(self) -> dict:
        ...
    def documents(self) -> list[Document]:
        ...
    def prompt(self) -> str:
        """
        The text that was read: instruction, documents, and what comes before a question.
        """
    def question_ids(self, question: str) -> list[int]:
        """
        The tokens that follow the documents for this question, up to where the answer begins.
        """
    def session(self) -> Session:
        ...
class BuildOptions:
    def __init__(self, *, before_documents: str, before_question: str, after_question: str, after_answer: str, add_special_tokens: bool, layout: str, kv: str, max_kl: typing.SupportsFloat | typing.SupportsIndex, overflow: str, reserve: typing.SupportsInt | typing.SupportsIndex, segment_tokens: typing.SupportsInt | typing.SupportsIndex, recompute: typing.SupportsInt | typing.SupportsIndex, abstain_below: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
class Expected:
    """
    What the documents of an update are expected to be.
    
    Members:
    
      anything
    
      new_names
    
      known_names
    """
    __members__: typing.ClassVar[dict[str, Expected]]
    anything: typing.ClassVar[Expected]
    known_names: typing.ClassVar[Expected]
    new_names: typing.ClassVar[Expected]
    @typing.overload
    def __eq__(self, other: Expected) -> bool:
        ...
    @typing.overload
    def __eq__(self, other: typing.Any) -> bool:
        ...
    def __getstate__(self) -> int:
        ...
    def __hash__(self) -> int:
        ...
    def __index__(self) -> int:
        ...
    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __int__(self) -> int:
        ...
    @typing.overload
    def __ne__(self, other: Expected) -> bool:
        ...
    @typing.overload
    def __ne__(self, other: typing.Any) -> bool:
        ...
    def __repr__(self) -> str:
        ...
    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def __str__(self) -> str:
        ...
    @property
    def name(self) -> str:
        ...
    @property
    def value(self) -> int:
        ...
class KvStatistics:
    """
    Second moments of one attention layer's queries, keys and values before RoPE.
    
    What :func:`modicum.retrofit.merge_kv` reads. With κ_f = k_f + i k_{f+d/2}, the pair of dimensions that RoPE turns by
    frequency f in the half-split layout of Hugging Face checkpoints: E[κ κᴴ] over KV heads, E|ρ|² of every query head,
    and E[v vᵀ] of all values. Sums are float64, the same for any number of threads.
    
    Raises InvalidArgument where kv_heads does not divide heads, or head_dim is odd.
    """
    def __init__(self, *, heads: typing.SupportsInt | typing.SupportsIndex, kv_heads: typing.SupportsInt | typing.SupportsIndex, head_dim: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def key_gram(self, frequency: typing.SupportsInt | typing.SupportsIndex) -> typing.Annotated[numpy.typing.NDArray[numpy.complex128], "[m, n]"]:
        """
        E[κ κᴴ] of a frequency, complex128 [kv_heads, kv_heads].
        """
    def merge(self, other: KvStatistics) -> None:
        """
        Adds those of another text. Raises InvalidArgument where the heads differ.
        """
    def query_energy(self) -> typing.Annotated[numpy.typing.NDArray[numpy.float64], "[m, n]"]:
        """
        E|ρ|², float64 [head_dim / 2, heads].
        """
    def update(self, q: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], k: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], v: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], *, threads: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
        """
        Adds tokens: float32 q [tokens, heads · head_dim], k and v [tokens, kv_heads · head_dim].
        
        Outputs of q_proj, k_proj and v_proj, biases included, before RoPE. `threads` 0: every processor that this process may
        use. Raises InvalidArgument for other shapes.
        """
    def value_gram(self) -> typing.Annotated[numpy.typing.NDArray[numpy.float64], "[m, n]"]:
        """
        E[v vᵀ], float64 [kv_heads · head_dim, kv_heads · head_dim].
        """
    @property
    def count(self) -> int:
        """
        Tokens.
        """
def active_isa() -> str:
    """
    The instruction set whose kernels run: plain, avx2, avx512, avx512vnni, avx512bf16 or amx (MODICUM_ISA forces one).
    """
def adopt_knowledge(model: Model, documents: collections.abc.Sequence[Document], path: os.PathLike | str | bytes, k: numpy.ndarray, v: numpy.ndarray, options: BuildOptions) -> Knowledge:
    ...
def awq_scales(matrices: collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.float32]], gram: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], magnitudes: typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None, *, bits: typing.SupportsInt | typing.SupportsIndex, group: typing.SupportsInt | typing.SupportsIndex, sources: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], scale_dtype: str, threads: typing.SupportsInt | typing.SupportsIndex) -> tuple:
    ...
def beam(start: Branch, prompts: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]], options: BeamOptions, *, constraint: Constraint, progress: typing.Any, on_stable: typing.Any) -> list[BeamResult]:
    ...
def beam_over(step: typing.Any, start_scores: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], prompt: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], options: BeamOptions, *, constraint: Constraint, tokenizer: Tokenizer | None, progress: typing.Any, on_stable: typing.Any) -> BeamResult:
    ...
def build_knowledge(model: Model, documents: collections.abc.Sequence[Document], path: os.PathLike | str | bytes, options: BuildOptions, progress: typing.Any) -> Knowledge:
    ...
def compare(teacher: Model, student: Model, sequences: typing.Annotated[numpy.typing.ArrayLike, numpy.int32], *, progress: typing.Any = None) -> dict:
    ...
def extend(extensions: collections.abc.Sequence[tuple[Branch, collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]]], *, progress: typing.Any = None) -> list[Branch]:
    """
    Reads many branches at once: `extensions` is a list of (branch, ids), all of one tree.
    
    Keys and values that branches share are read from memory once for all of them. Returns the new leaves, in order.
    """
def factorize(matrix: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], rank: typing.SupportsInt | typing.SupportsIndex) -> dict:
    ...
def generate(start: Branch, prompt: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], *, max_new_tokens: typing.SupportsInt | typing.SupportsIndex, min_new_tokens: typing.SupportsInt | typing.SupportsIndex, stop_ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], stop: collections.abc.Sequence[str], temperature: typing.SupportsFloat | typing.SupportsIndex, top_k: typing.SupportsInt | typing.SupportsIndex, top_p: typing.SupportsFloat | typing.SupportsIndex, min_p: typing.SupportsFloat | typing.SupportsIndex, repetition_penalty: typing.SupportsFloat | typing.SupportsIndex, seed: typing.SupportsInt | typing.SupportsIndex, with_text: bool, callback: typing.Any) -> GenerateResult:
    ...
def gptq(weights: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], gram: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], *, bits: typing.SupportsInt | typing.SupportsIndex, group: typing.SupportsInt | typing.SupportsIndex, act_order: bool, damping: typing.SupportsFloat | typing.SupportsIndex, scale_dtype: str, threads: typing.SupportsInt | typing.SupportsIndex) -> tuple:
    ...
def grouped_query_sources(query_heads: typing.SupportsInt | typing.SupportsIndex, kv_heads: typing.SupportsInt | typing.SupportsIndex, head_dim: typing.SupportsInt | typing.SupportsIndex) -> list[int]:
    ...
def inspect_knowledge(path: os.PathLike | str | bytes) -> dict:
    """
    What a knowledge file holds, after checking its seal and checksums.
    """
def keep_mask(seed: typing.SupportsInt | typing.SupportsIndex, tensor: str, model: typing.SupportsInt | typing.SupportsIndex, count: typing.SupportsInt | typing.SupportsIndex, density: typing.SupportsFloat | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.bool]:
    ...
def lexicon_of_ids(entries: collections.abc.Iterable, *, tokenizer: Tokenizer | None, progress: typing.Any) -> Lexicon:
    ...
def lexicon_of_texts(tokenizer: Tokenizer, texts: collections.abc.Iterable, *, prefix: str, threads: typing.SupportsInt | typing.SupportsIndex, progress: typing.Any) -> Lexicon:
    ...
def logits(branches: collections.abc.Sequence[Branch]) -> numpy.typing.NDArray[numpy.float32]:
    """
    Logits of the token after each of the branches of one model, float32 [branches, vocabulary].
    
    The head's weights are read from memory once for all of them.
    """
def low_rank(weight: typing.Annotated[numpy.typing.ArrayLike, numpy.float64, "[m, n]"], gram: typing.Annotated[numpy.typing.ArrayLike, numpy.float64, "[m, n]"], *, rank: typing.SupportsInt | typing.SupportsIndex, damping: typing.SupportsFloat | typing.SupportsIndex = 0.0) -> tuple:
    """
    The two factors of a linear layer that lose least of its output, in closed form.
    
    `weight` W [outputs, inputs] and `gram` G = E[x xᵀ] [inputs, inputs] of the inputs x that it reads, in float64. Returns
    (u [outputs, rank], v [rank, inputs], loss): W ≈ u v, where u are the left singular vectors of W G^½ and v = uᵀ W (as
    SVD-LLM, Wang et al. 2024, arXiv 2403.07378, without inverting G); `loss` is tr((W − uv) G (W − uv)ᵀ) / tr(W G Wᵀ), the
    share of output energy in the singular values that are left out. `damping` adds that share of G's mean diagonal to its
    diagonal, for inputs that the text did not have; the loss is without it.
    
    modicum runs such layers (config.json: "modicum": {"low_rank": {"modules": {name or "re:pattern": rank}}}, tensors
    NAME.weight_u and NAME.weight_v); transformers does after :func:`modicum.interop.register`.
    
    Raises InvalidArgument for a rank of 0 or above the smaller side, shapes that do not fit, negative damping, and
    numbers that are not finite.
    """
def machine_limits(*, threads: typing.SupportsInt | typing.SupportsIndex = 0) -> MachineLimits:
    """
    Measures, for some tenths of a second, what this machine can do; `threads` 0 means every processor.
    """
def merge(plan: str, out: os.PathLike | str | bytes, *, work: os.PathLike | str | bytes, shard_bytes: typing.SupportsInt | typing.SupportsIndex, sync_bytes: typing.SupportsInt | typing.SupportsIndex, threads: typing.SupportsInt | typing.SupportsIndex, progress: typing.Any) -> dict:
    ...
def merge_arrays(plan: str, base: typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None, arrays: collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.float32]], *, name: str, threads: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float32]:
    ...
def merge_kv(q: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], k: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], v: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], o: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], statistics: KvStatistics, *, kv_heads: typing.SupportsInt | typing.SupportsIndex, method: str, grouping: str, q_bias: typing.Annotated[numpy.typing.ArrayLike, numpy.float64] | None, k_bias: typing.Annotated[numpy.typing.ArrayLike, numpy.float64] | None, v_bias: typing.Annotated[numpy.typing.ArrayLike, numpy.float64] | None, qk_norm: bool) -> dict:
    ...
def merge_plan(plan: str) -> str:
    ...
def open_lapack(path: str) -> bool:
    """
    Uses the LAPACK in a shared library for solves, unless one is in use already. Returns whether there is one.
    """
def open_lexicon(path: os.PathLike | str | bytes, tokenizer_fingerprint: str) -> Lexicon:
    ...
def pack_linear(integers: typing.Annotated[numpy.typing.ArrayLike, numpy.int8], scales: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], *, bits: typing.SupportsInt | typing.SupportsIndex, group: typing.SupportsInt | typing.SupportsIndex, scale_dtype: str) -> list[bytes]:
    ...
def perplexity(model: Model, sequences: typing.Annotated[numpy.typing.ArrayLike, numpy.int32], *, progress: typing.Any = None) -> dict:
    ...
def plan_knowledge(model: Model, documents: collections.abc.Sequence[Document], options: BuildOptions) -> dict:
    ...
def project(instruct: str, tuned: str, adapter: str, tokens: typing.Annotated[numpy.typing.ArrayLike, numpy.int32], lengths: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], out: os.PathLike | str | bytes, *, energy: typing.SupportsFloat | typing.SupportsIndex, others: bool, work: os.PathLike | str | bytes, shard_bytes: typing.SupportsInt | typing.SupportsIndex, sync_bytes: typing.SupportsInt | typing.SupportsIndex, threads: typing.SupportsInt | typing.SupportsIndex, progress: typing.Any) -> dict:
    ...
def quantization_json(modules: collections.abc.Sequence[tuple[str, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]], ignore: collections.abc.Sequence[str]) -> str:
    ...
def quantize(source: os.PathLike | str | bytes, out: os.PathLike | str | bytes, *, bits: typing.SupportsInt | typing.SupportsIndex, group: typing.SupportsInt | typing.SupportsIndex, head_bits: typing.SupportsInt | typing.SupportsIndex | None, threads: typing.SupportsInt | typing.SupportsIndex, progress: typing.Any) -> dict:
    ...
def read_bandwidth(*, threads: typing.SupportsInt | typing.SupportsIndex = 0, size: typing.SupportsInt | typing.SupportsIndex = 268435456) -> float:
    """
    Bytes/s of reading `size` bytes of memory once with `threads` threads, 0: every processor.
    
    Choose the size of what will be read: less may lie in a cache.
    """
def refine_ffn(x: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], targets: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], gate: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], up: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], down: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], *, factors: typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None, gate_bias: typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None, up_bias: typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None, down_bias: typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None, held_out: typing.SupportsInt | typing.SupportsIndex, rounds: typing.SupportsInt | typing.SupportsIndex, iterations: typing.SupportsInt | typing.SupportsIndex, damping: typing.SupportsFloat | typing.SupportsIndex, max_rows: typing.SupportsInt | typing.SupportsIndex, dtype: str, threads: typing.SupportsInt | typing.SupportsIndex, progress: typing.Any) -> tuple:
    ...
def retrofit_estimate(source: os.PathLike | str | bytes, plan: str, tokens: typing.Annotated[numpy.typing.ArrayLike, numpy.int32], *, held_out: typing.SupportsInt | typing.SupportsIndex) -> dict:
    ...
def retrofit_plan(json: str) -> str:
    """
    A plan with every field, or FormatError that names the one that is wrong.
    """
def retrofit_run(source: os.PathLike | str | bytes, out: os.PathLike | str | bytes, plan: str, tokens: typing.Annotated[numpy.typing.ArrayLike, numpy.int32], *, held_out: typing.SupportsInt | typing.SupportsIndex, relative: bool, work: os.PathLike | str | bytes, threads: typing.SupportsInt | typing.SupportsIndex, progress: typing.Any) -> dict:
    ...
def retrofit_survey(source: os.PathLike | str | bytes, tokens: typing.Annotated[numpy.typing.ArrayLike, numpy.int32], *, held_out: typing.SupportsInt | typing.SupportsIndex, widths: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], kv_heads: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], bits: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], threads: typing.SupportsInt | typing.SupportsIndex, progress: typing.Any) -> dict:
    ...
def round_nearest(weights: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], gram: typing.Annotated[numpy.typing.ArrayLike, numpy.float64] | None, *, bits: typing.SupportsInt | typing.SupportsIndex, group: typing.SupportsInt | typing.SupportsIndex, scale_dtype: str, threads: typing.SupportsInt | typing.SupportsIndex) -> tuple:
    ...
def shared_prompt_ids(model: Model, documents: collections.abc.Sequence[Document], options: BuildOptions) -> list[int]:
    """
    The tokens of a joint cache.
    """
def smooth_scales(matrices: collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.float32]], largest: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], *, alpha: typing.SupportsFloat | typing.SupportsIndex, sources: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> numpy.typing.NDArray[numpy.float32]:
    ...
def solver() -> str:
    """
    The library that serves solves, and its version.
    """
def supported_isas() -> list[str]:
    ...
def tensor_bytes(source: os.PathLike | str | bytes) -> dict[str, int]:
    """
    Bytes of each tensor of a checkpoint, by name.
    """
def update_knowledge(model: Model, path: os.PathLike | str | bytes, put: collections.abc.Sequence[Document], remove: collections.abc.Sequence[str], progress: typing.Any, expected: Expected) -> dict:
    ...
def verify_knowledge(model: Model, path: os.PathLike | str | bytes, samples: typing.SupportsInt | typing.SupportsIndex, progress: typing.Any) -> tuple[int, float]:
    ...
def warp(logits: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], *, temperature: typing.SupportsFloat | typing.SupportsIndex, top_k: typing.SupportsInt | typing.SupportsIndex, top_p: typing.SupportsFloat | typing.SupportsIndex, min_p: typing.SupportsFloat | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float32]:
    ...
def write_patch(plan: str, out: os.PathLike | str | bytes, *, rank: typing.SupportsInt | typing.SupportsIndex, error: typing.SupportsFloat | typing.SupportsIndex, dtype: str, keep_others: bool, threads: typing.SupportsInt | typing.SupportsIndex, progress: typing.Any) -> dict:
    ...
ABSTAIN_BELOW: float = 0.45
