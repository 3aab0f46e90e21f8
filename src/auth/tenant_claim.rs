//! The tenant that a caller claims.

use crate::model::{Identity, Means};

/// The session variable that names the tenant.
const VARIABLE: &str = "x-hasura-tenant-id";

/// The name of a tenant, as a JWT that this server verified claims it. Session variables that come
/// without a JWT claim nothing: anyone with the secret that is shared with Hasura could name any
/// tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TenantClaim<'i>(Option<&'i str>);

impl<'i> TenantClaim<'i> {
    /// The longest name of a tenant, in bytes.
    pub const LONGEST: usize = 256;

    /// Takes the claim of an identity.
    pub fn of(identity: &'i Identity) -> Self {
        let claimed = match identity.means {
            Means::Jwt => identity.session.get(VARIABLE),
            Means::HasuraSecret | Means::AdminToken | Means::Operator => None,
        };
        Self(claimed.filter(|name| !name.is_empty() && name.len() <= Self::LONGEST))
    }

    /// Returns the name; `None` if no tenant is claimed.
    pub fn name(self) -> Option<&'i str> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use crate::model::Session;

    use super::*;

    fn identity(means: Means, tenant: &str) -> Identity {
        let session = Session::from_pairs([("X-Hasura-Tenant-Id".to_owned(), tenant.to_owned())]);
        Identity { role: "user".into(), user: None, session, means }
    }

    #[test]
    fn only_a_verified_jwt_claims_a_tenant() {
        assert_eq!(TenantClaim::of(&identity(Means::Jwt, "acme")).name(), Some("acme"));
        for means in [Means::HasuraSecret, Means::AdminToken, Means::Operator] {
            assert_eq!(TenantClaim::of(&identity(means, "acme")).name(), None, "{means:?}");
        }
    }

    #[test]
    fn a_name_that_no_tenant_can_have_claims_none() {
        for name in ["", &"a".repeat(257)] {
            assert_eq!(TenantClaim::of(&identity(Means::Jwt, name)).name(), None);
        }
        assert!(TenantClaim::of(&identity(Means::Jwt, &"a".repeat(256))).name().is_some());
    }
}
