//! How the authority is spoken to: HTTPS alone, with an end to every call and to every answer.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Request, StatusCode, header::RETRY_AFTER};
use http_body_util::BodyExt;
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use rustls_pki_types::CertificateDer;
use serde::Deserialize;

use crate::served;

/// A call with its answer; authorities answer at once what they have not done yet.
const CALL_TIME_MAX: Duration = Duration::from_secs(30);

/// Until there is a connection.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

/// A chain of certificates is the largest answer.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// An authority that wants to be left alone for longer is asked again after this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

/// Why the authority could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// TLS for it cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
    /// The HTTP library refuses its settings.
    #[error("the HTTP client cannot be set up")]
    Setup(#[source] reqwest::Error),
    /// There was no answer.
    #[error("the ACME server could not be asked")]
    Call(#[source] reqwest::Error),
    /// There was more than any answer has.
    #[error("the ACME server's answer has more than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
    /// It is another server's.
    #[error("tls.acme.directory is {url}, which answers {status} and no ACME directory")]
    NoDirectory {
        /// The URL.
        url: String,
        /// What it answers with.
        status: StatusCode,
    },
}

/// What is looked for in a directory; the library reads the rest.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Directory {
    #[serde(rename = "newOrder")]
    _new_order: String,
    #[serde(rename = "newAccount")]
    _new_account: String,
}

/// A client of one authority.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    /// Before this, the authority said, it does not want to be asked again.
    not_before: Arc<Mutex<Option<SystemTime>>>,
}

impl Client {
    /// One that trusts these.
    pub(crate) fn new(roots: &[CertificateDer<'static>]) -> Result<Self, ClientError> {
        let mut store = rustls::RootCertStore::empty();
        store.add_parsable_certificates(roots.iter().cloned());
        let tls = rustls::ClientConfig::builder_with_provider(served::provider())
            .with_safe_default_protocol_versions()
            .map_err(ClientError::Tls)?
            .with_root_certificates(store)
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            // Requests are signed for the URL that they were sent to.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIME_MAX)
            .timeout(CALL_TIME_MAX)
            .user_agent(concat!("pilotlight/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(ClientError::Setup)?;
        Ok(Self { http, not_before: Arc::default() })
    }

    /// Whether there is an ACME server, before anything is asked of it that it counts.
    pub(crate) async fn find_directory(&self, url: &str) -> Result<(), ClientError> {
        let request = self.http.get(url).build().map_err(ClientError::Call)?;
        let (parts, body) = self.call(request).await?;
        if parts.status == StatusCode::OK && serde_json::from_slice::<Directory>(&body).is_ok() {
            return Ok(());
        }
        Err(ClientError::NoDirectory { url: url.to_owned(), status: parts.status })
    }

    /// How long the authority wants to be left alone, said since the last time that this was asked.
    pub(crate) fn take_pause(&self) -> Duration {
        let until = self.not_before.lock().unwrap_or_else(PoisonError::into_inner).take();
        let left = until.and_then(|until| until.duration_since(SystemTime::now()).ok());
        left.unwrap_or_default().min(RETRY_AFTER_MAX)
    }

    async fn call(&self, request: reqwest::Request) -> Result<(http::response::Parts, Bytes), ClientError> {
        let mut response = self.http.execute(request).await.map_err(ClientError::Call)?;
        if matches!(response.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            if let Some(seconds) = seconds.map(Duration::from_secs) {
                let until = SystemTime::now().checked_add(seconds.min(RETRY_AFTER_MAX));
                *self.not_before.lock().unwrap_or_else(PoisonError::into_inner) = until;
            }
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(ClientError::Call)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(ClientError::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        let (parts, ()) = {
            let mut head = http::Response::new(());
            *head.status_mut() = response.status();
            std::mem::swap(head.headers_mut(), response.headers_mut());
            head.into_parts()
        };
        Ok((parts, body.into()))
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let client = self.clone();
        let other = |error: ClientError| instant_acme::Error::Other(Box::new(error));
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let Ok(body) = body.collect().await;
            let request = Request::from_parts(parts, body.to_bytes());
            let request = reqwest::Request::try_from(request).map_err(|error| other(ClientError::Call(error)))?;
            let (parts, body) = client.call(request).await.map_err(other)?;
            Ok(BytesResponse { parts, body: Box::new(body) })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use rcgen::{CertificateParams, KeyPair};
    use rustls_pki_types::PrivateKeyDer;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// A server that answers every connection with this, and a client that trusts it.
    async fn answering(answer: Vec<u8>) -> (SocketAddr, Client) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
        let chain = vec![certificate.der().clone()];
        let tls = rustls::ServerConfig::builder_with_provider(served::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(&answer).await;
                let _ = stream.shutdown().await;
            }
        });
        (address, Client::new(&chain).unwrap())
    }

    fn answer(status: &str, body: &[u8]) -> Vec<u8> {
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    }

    async fn find(answer: Vec<u8>) -> (Result<(), ClientError>, Client) {
        let (address, client) = answering(answer).await;
        (client.find_directory(&format!("https://{address}/")).await, client)
    }

    #[tokio::test]
    async fn a_directory_is_told_from_anything_else() {
        let directory = br#"{ "newOrder": "https://a.test/o", "newAccount": "https://a.test/a", "meta": {} }"#;
        find(answer("200 OK", directory)).await.0.unwrap();
        for other in [
            answer("404 Not Found", directory),
            answer("200 OK", b"{}"),
            answer("200 OK", b"<html>"),
            answer("302 Found\r\nlocation: https://127.0.0.1:1/", directory),
        ] {
            let error = find(other).await.0.unwrap_err();
            assert!(matches!(error, ClientError::NoDirectory { .. }), "{error:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_has_an_end() {
        let padded = |bytes: usize| {
            let directory = br#"{ "newOrder": "https://a.test/o", "newAccount": "https://a.test/a" }"#;
            let mut body = directory.to_vec();
            body.resize(bytes, b' ');
            answer("200 OK", &body)
        };
        find(padded(ANSWER_BYTES_MAX)).await.0.unwrap();
        let error = find(padded(ANSWER_BYTES_MAX + 1)).await.0.unwrap_err();
        assert!(matches!(error, ClientError::TooLong), "{error:?}");
    }

    #[tokio::test]
    async fn an_authority_that_wants_to_be_left_alone_is_heard_once_and_not_for_ever() {
        let pause = async |head: &str| {
            let (_, client) = find(answer(head, b"{}")).await;
            (client.take_pause().as_secs_f64().round(), client.take_pause().as_secs())
        };
        assert_eq!(pause("429 Too Many Requests\r\nretry-after: 3600").await, (3600.0, 0));
        assert_eq!(pause("503 Service Unavailable\r\nretry-after: 99999999999999").await, (86400.0, 0));
        assert_eq!(pause("429 Too Many Requests").await, (0.0, 0));
        assert_eq!(pause("404 Not Found\r\nretry-after: 3600").await, (0.0, 0));
    }

    #[tokio::test]
    async fn who_is_not_trusted_is_not_talked_to() {
        let (address, _) = answering(answer("200 OK", b"{}")).await;
        let error = Client::new(&[]).unwrap().find_directory(&format!("https://{address}/")).await.unwrap_err();
        assert!(matches!(error, ClientError::Call(_)), "{error:?}");
        let (_, client) = answering(Vec::new()).await;
        let error = client.find_directory(&format!("http://{address}/")).await.unwrap_err();
        assert!(matches!(error, ClientError::Call(_)), "{error:?}");
    }
}
