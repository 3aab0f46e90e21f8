//! Logs, traces and metrics. Never holds a plaintext, a key or a provider's message.
