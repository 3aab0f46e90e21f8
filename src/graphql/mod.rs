//! The GraphQL front: translates between GraphQL and the use cases, nothing else.
