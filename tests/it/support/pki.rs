//! Certificates made for one test.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};

/// A certificate authority. Its files are in a folder that is removed when it is dropped.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

/// A certificate and its key, as files in PEM.
pub(crate) struct Files {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).expect("no names");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate().expect("a key"))
            .expect("an authority");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).expect("the file is written");
        Self { issuer, folder }
    }

    /// The file with its own certificate.
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate for a server on loopback.
    pub(crate) fn server(&self) -> Files {
        self.issue("server", &["127.0.0.1", "localhost"], ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A certificate for a client.
    pub(crate) fn client(&self) -> Files {
        self.issue("client", &["byok"], ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(&self, name: &str, names: &[&str], purpose: ExtendedKeyUsagePurpose) -> Files {
        let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let mut parameters = CertificateParams::new(names).expect("names");
        parameters.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.signed_by(&key, &self.issuer).expect("a certificate");
        let write = |kind: &str, text: String| {
            let path = self.folder.path().join(format!("{name}-{kind}.pem"));
            std::fs::write(&path, text).expect("the file is written");
            path
        };
        Files { certificate: write("certificate", certificate.pem()), key: write("key", key.serialize_pem()) }
    }
}

/// A client that trusts only this certificate, and presents the other one if there is one.
pub(crate) fn client(trusted: &Path, shown: Option<&Files>) -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let read = |path: &Path| std::fs::read(path).expect("the file is there");
    let certificate = reqwest::Certificate::from_pem(&read(trusted)).expect("a certificate");
    let mut builder = reqwest::Client::builder().tls_certs_only([certificate]);
    if let Some(files) = shown {
        let pem = [read(&files.key), read(&files.certificate)].concat();
        builder = builder.identity(reqwest::Identity::from_pem(&pem).expect("certificate and key"));
    }
    builder.build().expect("a client")
}
