//! The reasons why a TLS connection to a provider was not made: a closed set, derived from the type
//! of rustls's error. Nothing that the other side sent goes into it.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError};

/// The reason why one side did not trust the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// No authority that we trust issued the provider's certificate.
    UnknownIssuer,
    /// A trusted authority has the issuer's name, but another key.
    BadSignature,
    /// The certificate is no longer valid, or not yet.
    OutOfTime,
    /// The certificate is for another host.
    OtherName,
    /// The certificate is a certificate authority's own.
    AuthorityAsServer,
    /// The certificate is for another purpose, of X.509's first version, or has a critical
    /// extension that is not understood.
    Unusable,
    /// The provider does not trust us: it asks for a client certificate, or for another one.
    OfUs,
    /// The other side does not speak TLS, or no version of it that we support.
    NoTls,
}

impl Distrust {
    /// The reason in rustls's error, if that is among the causes of this one.
    pub(super) fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(error) = error.downcast_ref::<rustls::Error>() {
                return Self::of_tls(error);
            }
            // The error that an `io::Error` wraps is not among its sources.
            next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                Some(held) => Some(held),
                None => error.source(),
            };
        }
        None
    }

    fn of_tls(error: &rustls::Error) -> Option<Self> {
        use AlertDescription as Alert;
        Some(match error {
            rustls::Error::InvalidCertificate(error) => match error {
                CertificateError::UnknownIssuer => Self::UnknownIssuer,
                CertificateError::BadSignature => Self::BadSignature,
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Self::OutOfTime,
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    Self::OtherName
                }
                // rustls has no name for it: what is compared is that of a variant, not a text of
                // the provider's.
                CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
                    Self::AuthorityAsServer
                }
                _ => Self::Unusable,
            },
            rustls::Error::AlertReceived(
                Alert::BadCertificate
                | Alert::CertificateExpired
                | Alert::CertificateRequired
                | Alert::CertificateRevoked
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::UnsupportedCertificate,
            ) => Self::OfUs,
            rustls::Error::AlertReceived(Alert::ProtocolVersion | Alert::HandshakeFailure)
            | rustls::Error::InvalidMessage(_)
            | rustls::Error::PeerIncompatible(_) => Self::NoTls,
            _ => return None,
        })
    }

    /// A sentence for `doctor` and our log.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::UnknownIssuer => "its certificate is issued by no authority that is trusted here",
            Self::BadSignature => {
                "its certificate is not signed by the authority that is trusted here, though that has the same name"
            }
            Self::OutOfTime => "its certificate has expired, or is not valid yet by this machine's clock",
            Self::OtherName => "its certificate is for another host name than the one that is configured",
            Self::AuthorityAsServer => {
                "its certificate is that of a certificate authority (`CA:TRUE`), which is not accepted as a server's: trusted is \
                 an authority that has issued another one to the server"
            }
            Self::Unusable => {
                "its certificate is not one that may be accepted: X.509 version 1, no server's (extended key usage), a weak \
                 signature, or a critical extension that is not known"
            }
            Self::OfUs => "it does not accept our client certificate, or asks for one",
            Self::NoTls => "it does not speak TLS 1.2 or 1.3 at that address",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_found_within_an_io_error() {
        let tls = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let nested = io::Error::other(io::Error::other(tls));
        assert_eq!(Distrust::of(&nested), Some(Distrust::UnknownIssuer));
        assert_eq!(Distrust::of(&io::Error::other("refused")), None);
    }
}
