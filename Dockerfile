# syntax=docker/dockerfile:1
FROM node:20-bookworm-slim AS node

FROM rust:1.95-bookworm AS build
COPY --from=node /usr/local /usr/local
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked && cp target/release/byok /byok

# glibc and CA certificates only: no shell, no package manager, and a user that is not root.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /byok /usr/local/bin/byok
ENV BYOK_LISTEN=0.0.0.0:3741 BYOK_LOG_FORMAT=json
EXPOSE 3741
USER nonroot
HEALTHCHECK --interval=10s --timeout=12s --start-period=30s CMD ["/usr/local/bin/byok", "health"]
ENTRYPOINT ["/usr/local/bin/byok"]
CMD ["serve"]
