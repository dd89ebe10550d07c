"""How loops are compiled: one place, as inlined loops take the options of those they end up in.

Compiled code is kept on disk between processes, with a digest in every file: what was damaged is
removed and compiled anew.  What was compiled ahead is used also from where nothing can be written;
what cannot be kept is compiled in memory, with one warning.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import inspect
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from llvmlite import binding
from numba import njit, types
from numba.core import config, sigutils
from numba.core.caching import (
    CompileResultCacheImpl,
    FunctionCache,
    IndexDataCacheFile,
    InTreeCacheLocator,
    UserProvidedCacheLocator,
)
from numba.core.ccallback import CFunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, Flags
from numba.core.compiler_machinery import FunctionPass, PassManager, register_pass
from numba.core.interpreter import (
    Interpreter,
    peep_hole_delete_with_exit,
    peep_hole_fuse_dict_add_updates,
)
from numba.core.registry import CPUDispatcher
from numba.core.rewrites import rewrite_registry
from numba.core.runtime.nrt import rtsys
from numba.core.transforms import canonicalize_cfg
from numba.core.typed_passes import (
    IRLegalization,
    NativeLowering,
    NoPythonBackend,
    NopythonTypeInference,
)
from numba.core.types.misc import unliteral
from numba.core.untyped_passes import FixupArgs

from ..errors import CTMMWarning
from ..progress import watched
from .lowering import Lowered
from .references import referred
from .renaming import OneThingEach

EXACT: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
"""Sums in the order in which they are written."""

FAST: dict[str, Any] = {**EXACT, "fastmath": {"reassoc", "contract", "nsz", "arcp"}}
"""Sums may be reordered, which lets them vectorise; NaN and inf stay exact."""


class _Library(JITCodeLibrary):
    """Code of a function, to be optimised when it is finished."""

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout


class _Finished(_Library):
    """Code of a function with all that it calls.

    Loops are vectorised, but neither unrolled nor interleaved, which makes twice the code that is
    no faster: most are written with as many lanes as the machine has.
    """

    def finalize(self) -> None:
        """Link what it calls, and what that calls, once each."""
        for library in self._linking_libraries:  # grows on the way
            if isinstance(library, _Unfinished):
                self._linking_libraries += library._linking_libraries
        super().finalize()

    def _optimize_final_module(self) -> None:
        tuning = binding.create_pipeline_tuning_options(speed_level=3)
        tuning.loop_vectorization, tuning.slp_vectorization = True, False
        tuning.loop_unrolling = tuning.loop_interleaving = False
        builder = binding.create_pass_builder(self._codegen._tm, tuning)
        manager = builder.getModulePassManager()
        manager.add_refprune_pass()
        manager.run(self._final_module, builder)


class _Unfinished(_Library):
    """Code of a function that is optimised, and made to machine code, with its callers only."""

    def finalize(self) -> None:
        """Say where its environment lies: all that a process asks of the code by itself."""
        for each in self._final_module.global_variables:
            if "NumbaEnv" in each.name:
                place = ctypes.c_void_p()
                _PLACES.append(place)
                self._codegen._engine.add_global_mapping(each, ctypes.addressof(place))
        self._finalized = True


_PLACES: list[ctypes.c_void_p] = []


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(NativeLowering):
    """To few instructions."""

    _name = "lowering_of_loops"
    lowering_class = Lowered


class _Interpreter(Interpreter):
    """To numba's code: without looking in every line for contexts and dictionaries."""

    def post_process(self, peepholes: list[Callable], func_ir: Any) -> Any:
        others = peep_hole_delete_with_exit, peep_hole_fuse_dict_add_updates
        return super().post_process([each for each in peepholes if each not in others], func_ir)


@register_pass(mutates_CFG=True, analysis_only=False)
class _Translation(FunctionPass):
    """From Python's bytecode."""

    _name = "translation_of_loops"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        state.func_ir = _Interpreter(state.func_id).interpret(state.bc)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class _Rewrites(FunctionPass):
    """Numba's of its code before it knows types: constant indices and exponents, and errors."""

    _name = "rewrites_of_loops"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        code = state.func_ir
        for rewrite in (each(state) for each in rewrite_registry.rewrites["before-inference"]):
            for label in code.blocks:
                while rewrite.match(code, code.blocks[label], state.typemap, state.calltypes):
                    code.blocks[label] = rewrite.apply()
        code.blocks, code.generator_info = canonicalize_cfg(code.blocks), None
        return True


_PASSES = (
    _Translation, FixupArgs, _Rewrites, OneThingEach, NopythonTypeInference, IRLegalization,
    _Lowering, NoPythonBackend,
)  # fmt: skip
"""Those of numba's that plain loops need: no closures, contexts, expressions of whole arrays."""


class _Settled(Flags):
    """Options that change no more: numba asks whether they are the same at every operation."""

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def copy(self) -> _Settled:
        """Itself."""
        return self


_settled = functools.cache(_Settled)


class _Passes(PassManager):
    """Passes one after the other, of which nobody else is told."""

    def _runPass(self, index: int, pss: Any, internal_state: Any) -> None:
        pss.run_pass(internal_state)


class _Asked:
    """Numba's types of what operations give, asked once for each operation on each kind of values.

    By itself numba tries all that an operation may mean wherever it is written.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self.resolve_getattr = functools.cache(context.resolve_getattr)
        self.resolve_setitem = functools.cache(context.resolve_setitem)
        self._operation = functools.cache(lambda *given: context.resolve_function_type(*given, {}))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def resolve_function_type(self, func: Any, args: tuple, kws: dict) -> Any:
        """The signature."""
        if kws or not isinstance(func, types.Function):
            return self._context.resolve_function_type(func, args, kws)
        return self._operation(func, tuple(args))


_asked = functools.cache(_Asked)


@contextmanager
def _uncollected() -> Iterator[None]:
    """No look for garbage, again and again, while there is little, and more and more else."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


class _Outer(CompilerBase):
    """Compiles what is called from Python too."""

    library: type[JITCodeLibrary] = _Finished

    def __init__(self, *given: Any) -> None:
        *others, flags, variables = given
        super().__init__(*others, _settled(flags), variables)
        self.state.typingctx = _asked(self.state.typingctx)

    def compile_extra(self, func: Callable) -> Any:
        """Compile; the parent's only without a library, which it then makes."""
        codegen = self.state.targetctx.codegen()
        self.state.library = self.library(codegen, func.__qualname__)
        self.state.library.enable_object_caching()
        with _uncollected():
            return super().compile_extra(func)

    def define_pipelines(self) -> list[PassManager]:
        """One, of plain loops."""
        manager = _Passes("loops")
        for each in _PASSES:
            manager.add_pass(each)
        manager.finalize()
        return [manager]


class _Inner(_Outer):
    """Compiles what is called from compiled code only.

    Numba by itself finishes every function and then those that call it, again with all that they
    call: twice the time in all, the more the deeper calls go.
    """

    library = _Unfinished


class _Function(CPUDispatcher):
    """Compiled once for all numbers, where numba by itself does so for each."""

    def _compilation_chain_init_hook(self) -> None:
        """Nothing: loops know no types of other packages, which the parent looks for."""

    def typeof_pyval(self, val: Any) -> Any:
        """The parent's, of named tuples by their address, and those that are held by their own."""
        return getattr(val, "_numba_type_", None) or referred(super().typeof_pyval(val))

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """The parent's, of types without values, and of named tuples by their address."""
        args = tuple(referred(unliteral(kind)) for kind in args)
        kws = {name: referred(unliteral(kind)) for name, kind in kws.items()}
        return super().get_call_template(args, kws)


class _InnerFunction(_Function):
    """Called from compiled code only."""

    def compile(self, sig: Any) -> None:
        """Without the parent's clocks, all of which are told of every call of LLVM."""
        args, _ = sigutils.normalize_signature(sig)
        with self._compiling_counter:
            if tuple(args) not in self.overloads:
                self.add_overload(self._compiler.compile(args, None))


def _inner(function: Callable, options: dict[str, Any]) -> Any:
    compiled = njit(
        **options, no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=_Inner
    )(function)
    compiled.__class__ = _InnerFunction
    return compiled


def called(function: Callable) -> Any:
    """Compile with the options FAST what is called from compiled code only.

    It has no code of its own, so that a call never runs another copy with other roundings than its
    caller's, whether that was compiled here or comes from the disk.
    """
    return _inner(function, FAST)


def called_exact(function: Callable) -> Any:
    """The same with the options EXACT."""
    return _inner(function, EXACT)


def inlined(function: Callable) -> Any:
    """As :func:`called`, and inlined: vectors of lanes stay in registers."""
    return _inner(function, {**FAST, "forceinline": True})


_FOLDERS: set[str] = set()
_DIGEST = 16  # bytes at the end of a file


def kept(function: Callable) -> Any:
    """Compile with the options FAST, and keep the code on disk."""
    return _outer(function, FAST)


def kept_exact(function: Callable) -> Any:
    """The same with the options EXACT."""
    return _outer(function, EXACT)


def kept_callback(signature: Any, function: Callable) -> Any:
    """The same as a C callback of that signature, compiled at once."""
    options = {name: FAST[name] for name in ("fastmath", "error_model")}
    kind = sigutils.normalize_signature(signature)
    callback = _caching(CFunc(function, kind, {}, options, pipeline_class=_Outer))
    callback.compile()
    return callback


def _outer(function: Callable, options: dict[str, Any]) -> Any:
    compiled = njit(**options, no_cfunc_wrapper=True, pipeline_class=_Outer)(function)
    compiled.__class__ = _Function
    return _caching(compiled)


def _caching(compiled: Any) -> Any:
    try:
        compiled._cache = _Loaded(inspect.unwrap(compiled))
    except RuntimeError as error:  # a choice of places that numba was told has none
        _say(str(error))
    return compiled


def where_kept() -> tuple[list[str], str]:
    """Folders of the code that this process has used, and why some could not be kept, or ""."""
    return sorted(_FOLDERS), "".join(_once()[:1])


@functools.cache
def _once() -> list[str]:
    return []


def _say(why: str) -> None:
    """One warning in a process."""
    if _once():
        return
    _once().append(why)
    warnings.warn(
        "compiled code cannot be kept on disk, so every process compiles for some seconds: set the "
        f"environment variable NUMBA_CACHE_DIR to a directory that can be written ({why})",
        CTMMWarning,
        stacklevel=2,
    )


@functools.cache
def _announce() -> None:
    """Say once, where somebody looks, what the first use waits for."""
    if watched() and parent_process() is None:
        sys.stderr.write(
            "ctmm_formula: compiling for its first use on this machine, up to a minute or two "
            "(python -m ctmm_formula compile does all of it ahead)\n"
        )


class _BesideTheSource(InTreeCacheLocator):
    """Where code may have been compiled ahead, though no place can be written."""

    @classmethod
    def from_function(cls, py_func: Callable, py_file: str) -> _BesideTheSource:
        """The place, whether there is code or not."""
        return cls(py_func, py_file)


@functools.cache
def _open(folder: str) -> bool:
    """Whether this user can write there."""
    return os.access(folder, os.W_OK)


class _Places(CompileResultCacheImpl):
    _locator_classes = (*CompileResultCacheImpl._locator_classes, _BesideTheSource)

    def reduce(self, cres: Any) -> tuple:
        """The code without what Python objects the functions that it calls would need."""
        *code, _ = cres._reduce()
        return (*code, ())


class _Loaded(FunctionCache):
    """Numba's keeper of the code of one function.

    It looks where it may not write too, in the folder that the user has named and beside the
    source: code is compiled ahead by those who install, and used by others.
    """

    _impl_class = _Places

    def __init__(self, function: Callable) -> None:
        super().__init__(function)
        file, impl = inspect.getfile(function), self._impl
        kinds = (UserProvidedCacheLocator, InTreeCacheLocator)
        others = [kind(function, file) for kind in (kinds if config.CACHE_DIR else kinds[1:])]
        closed = [path for path in (one.get_cache_path() for one in others) if not _open(path)]
        stamp = impl.locator.get_source_stamp()
        self._files = [
            _Checked(path, impl.filename_base, stamp)
            for path in dict.fromkeys([self._cache_path, *closed])
        ]
        self._cache_file = self._files[0]
        self.helper: subprocess.Popen | None = None
        """The process that compiles this function, see :mod:`.beside`."""

    def is_empty(self) -> bool:
        """Whether there is no code that could be loaded, nor any on its way."""
        with suppress(Exception):  # damaged bytes may raise anything
            return self.helper is None and not any(file._load_index() for file in self._files)
        return True

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The code, without all that numba would need to compile any."""
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)

    def _load_overload(self, sig: Any, target_context: Any) -> Any:
        key = self._index_key(sig, target_context.codegen())
        code = next(filter(None, (file.load(key) for file in self._files)), None)
        if code is None:
            _announce()
            if self.helper is None:
                return None
            self.helper.wait()
            self.helper = None
            return self._load_overload(sig, target_context)
        return self._impl.rebuild(target_context, code)

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write the code, if it can be written."""
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _say(str(error))


class _Checked(IndexDataCacheFile):
    """Numba's files of one function: an index, and the code for each of its signatures."""

    def load(self, key: Any) -> Any:
        """The code, or None where there is none or it is damaged."""
        try:
            code = super().load(key)
        except Exception:  # unpickling damaged bytes may raise anything
            self._remove()
            code = None
        if code is not None:
            _FOLDERS.add(self._cache_path)
        return code

    def save(self, key: Any, data: Any) -> None:
        """Write the code."""
        super().save(key, data)
        _FOLDERS.add(self._cache_path)

    def _digest(self, data: bytes) -> bytes:
        """Of the file's bytes and of the name of its function."""
        return blake2b(self._index_name.encode() + data, digest_size=_DIGEST).digest()

    def _check(self, data: bytes) -> None:
        """The digest at the end must be that of what comes before."""
        if self._digest(data[:-_DIGEST]) != data[-_DIGEST:]:
            raise ValueError("the digest is another")

    def _dump(self, obj: Any) -> bytes:
        data = super()._dump(obj)
        return data + self._digest(data)

    def _load_index(self) -> Any:
        path, version = Path(self._index_path), pickle.dumps(self._version, protocol=-1)
        data = path.read_bytes() if path.exists() else b""
        if data.startswith(version):  # of another one numba reads no further
            self._check(data[len(version) :])
        return super()._load_index()

    def _load_data(self, name: str) -> Any:
        self._check(Path(self._data_path(name)).read_bytes())
        return super()._load_data(name)

    def _remove(self) -> None:
        base = Path(self._index_path)
        for path in [base, *base.parent.glob(f"{base.stem}.*.nbc")]:
            with suppress(OSError):
                path.unlink()
