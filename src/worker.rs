//! Timers that call use cases: the rotation job. Decides nothing itself.
