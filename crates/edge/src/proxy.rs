//! One request: read, admit, forward, answer.

use std::{convert::Infallible, sync::Arc, time::SystemTime};

use http::{
    HeaderValue, Request, Response, StatusCode, Uri, Version, header,
    uri::{Authority, PathAndQuery},
};
use http_body::Body;
use hyper::body::Incoming;
use uuid::Uuid;

use crate::{
    activity::Activity,
    body::{Linger, ReplyBody, RequestBody},
    client_io::{Busy, Served},
    headers,
    refusal::Refusal,
    route,
    server::{Places, Shared},
    tunnel, upstream,
};

/// What requests of one client connection have in common.
pub(crate) struct Client {
    pub(crate) server_name: Option<String>,
    pub(crate) served: Served,
    /// Kept as long as anything of the connection lives, a tunnel included.
    pub(crate) places: Places,
}

/// Answers a request.
pub(crate) async fn answer(
    shared: Arc<Shared>,
    client: Arc<Client>,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, Infallible> {
    let busy = client.served.busy();
    let id = Uuid::new_v4();
    let id_value = headers::request_id(&id);
    let method = request.method().clone();
    // Bounded, as it comes from anyone and goes to the log.
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| request.uri().authority().map(Authority::as_str)).unwrap_or_default();
    let host: String = host.chars().take(300).collect();
    let mut response = match forward(&shared, &client, request, &id_value).await {
        Ok(answer) => answer.into_response(&shared, busy),
        Err(refusal) => {
            refusal.log(&id, &host, &method);
            refuse(&refusal, busy)
        }
    };
    response.headers_mut().insert(headers::REQUEST_ID, id_value);
    Ok(response)
}

/// The app's answer.
struct Answer {
    response: Response<Incoming>,
    activity: Arc<Activity>,
}

impl Answer {
    fn into_response(self, shared: &Shared, busy: Busy) -> Response<ReplyBody> {
        let silence = shared.config.limits.silence;
        self.response.map(|body| ReplyBody::app(body, self.activity, silence, busy))
    }
}

async fn forward(
    shared: &Arc<Shared>,
    client: &Arc<Client>,
    mut request: Request<Incoming>,
    id: &HeaderValue,
) -> Result<Answer, Refusal> {
    let limits = &shared.config.limits;
    let upgrade = headers::upgrade(request.headers());
    let on_client_upgrade = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let (mut head, body) = request.into_parts();
    // A client that asked whether to send its body waits for the answer, and a refusal says no.
    let http2 = head.version == Version::HTTP_2;
    let linger = (!http2 && !head.headers.contains_key(header::EXPECT))
        .then_some(Linger { bytes: limits.linger_bytes, time: limits.linger });
    let mut body = RequestBody::new(body, head.version, linger);
    if client.places.is_refused() {
        return Err(Refusal::TooManyConnections);
    }
    if head.headers.len() > limits.header_fields {
        return Err(Refusal::TooManyFields(limits.header_fields));
    }

    let target = route::read(
        &head.method,
        &head.uri,
        head.version,
        &head.headers,
        client.server_name.as_deref(),
        &shared.config.domain_suffix,
    )?;
    let (claims, endpoint) = route::authenticate(&target, &shared.keys, now())?;
    let microvm = shared.directory.microvm_at(&endpoint).await;
    let microvm = route::admit(&claims, microvm, target.port)?;
    let port = target.port;

    let activity = Activity::new(Arc::clone(&shared.directory), microvm);
    body.count_for(Arc::clone(&activity));
    if http2 {
        headers::from_http2(&mut head.headers, &head.uri, !body.is_end_stream());
    }
    headers::to_app(&mut head.headers, id, upgrade);
    let mut to_app = Request::new(body);
    *to_app.method_mut() = head.method;
    *to_app.uri_mut() = origin_form(&head.uri);
    *to_app.headers_mut() = head.headers;

    let mut response = upstream::exchange(shared, microvm, port, to_app, &activity).await?;
    // The versions of both sides are their own; the client's is known to the library.
    *response.version_mut() = Version::HTTP_11;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let chosen = response.headers().get(header::UPGRADE).cloned();
        let (Some(on_client), Some(chosen)) = (on_client_upgrade, chosen) else {
            return Err(Refusal::BadAnswer("it changes to a protocol nobody asked for"));
        };
        let on_app = hyper::upgrade::on(&mut response);
        headers::to_client(response.headers_mut(), Some(chosen));
        let (client, activity) = (Arc::clone(client), Arc::clone(&activity));
        let (silence, cut) = (limits.silence, shared.cut.clone());
        shared.tasks.spawn(async move {
            // The tunnel keeps the connection's place, and tells its reader that no request head is awaited.
            let _busy = client.served.busy();
            tokio::select! {
                () = tunnel::join(on_client, on_app, activity, silence) => {}
                () = cut.cancelled() => {}
            }
        });
    } else {
        if let Some(coding) = response.headers().get(header::TRANSFER_ENCODING)
            && !coding.as_bytes().eq_ignore_ascii_case(b"chunked")
        {
            return Err(Refusal::BadAnswer("no transfer encoding but chunked is known"));
        }
        headers::to_client(response.headers_mut(), None);
    }
    Ok(Answer { response, activity })
}

/// Seconds since the Unix epoch; before it, all tokens are good, and nothing else works either.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The target as an origin server wants it: path and query alone.
fn origin_form(uri: &Uri) -> Uri {
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    Uri::from(path)
}

fn refuse(refusal: &Refusal, busy: Busy) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::own(refusal.body(), busy));
    *response.status_mut() = refusal.status();
    let headers = response.headers_mut();
    if !refusal.body().is_empty() {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    if refusal.status() == StatusCode::TOO_MANY_REQUESTS {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}
