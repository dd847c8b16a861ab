# SPDX-License-Identifier: LGPL-2.1-or-later OR BSD-2-Clause
# The types of what pybootstrap/native/shim.h and bpf/bootstrap.h declare, as cffi exposes it.

from _cffi_backend import FFI

_CData = FFI.CData

class _FFI(FFI):
    def string(self, cdata: _CData, maxlen: int = -1) -> bytes: ...  # we have no wide characters

class _Lib:
    # enum limits
    COMM_SIZE: int
    FILENAME_SIZE: int
    ARGS_SIZE: int
    TEXT_SIZE: int
    FILTER_SIZE: int
    # enum record_kind
    RECORD_EXEC: int
    RECORD_EXIT: int
    # enum record_flags
    FILENAME_TRUNCATED: int
    ARGS_TRUNCATED: int
    DURATION_SINCE_EXEC: int
    TEXT_MISSING: int
    USAGE_PARTIAL: int

    SHIM_MIN_READ: int
    SHIM_MIN_RING: int
    SHIM_MAX_RING: int

    def shim_open(self, shim: _CData, settings: _CData, /) -> int: ...
    def shim_load(self, shim: _CData, /) -> int: ...
    def shim_attach(self, shim: _CData, /) -> int: ...
    def shim_detach(self, shim: _CData, /) -> int: ...
    def shim_read(
        self,
        shim: _CData,
        buffer: _CData,
        size: int,
        timeout_ms: int,
        may_gather: int,
        lost: _CData,
        /,
    ) -> int: ...
    def shim_wake(self, shim: _CData, /) -> int: ...
    def shim_fd(self, shim: _CData, /) -> int: ...
    def shim_signal_fd(self, shim: _CData, /) -> int: ...
    def shim_take_signals(self, shim: _CData, buffer: _CData, size: int, /) -> int: ...
    def shim_stats(self, shim: _CData, stats: _CData, /) -> int: ...
    def shim_log(self, shim: _CData, /) -> _CData: ...
    def shim_close(self, shim: _CData, /) -> None: ...
    def shim_close_in_child(self, shim: _CData, /) -> None: ...
    def shim_free(self, shim: _CData, /) -> None: ...
    def shim_give_up_privileges(self, uid: int, gid: int, /) -> int: ...
    def shim_kernel_has_struct(self, name: bytes, /) -> int: ...
    def shim_libbpf_version(self) -> _CData: ...

ffi: _FFI
lib: _Lib
