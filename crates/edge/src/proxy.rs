//! One request: read, admit, forward, answer.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use api::{directory::Behind, ids::MicrovmId, size::Size};
use http::{
    HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version, header,
    uri::{Authority, PathAndQuery},
};
use http_body::Body;
use hyper::{body::Incoming, upgrade::OnUpgrade};

use crate::{
    activity::Activity,
    allowance::Seat,
    body::{Held, Linger, ReplyBody, RequestBody},
    client_io::Served,
    connect::Wants,
    headers, link,
    opened::LastToken,
    record::Record,
    refusal::{self, Fault, Refusal},
    route::{self, ServerName, To},
    server::{Places, Shared},
    shell,
    tunnel::{self, Between},
    upstream::{self, Destination, Reply},
    websocket::{self, OverHttp2},
};

/// Why the edge answers and not the app (RFC 9209).
const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// What requests of one client connection have in common.
pub(crate) struct Client {
    pub(crate) server_name: Option<ServerName>,
    pub(crate) served: Served,
    /// Kept as long as anything of the connection lives, a tunnel included.
    pub(crate) places: Places,
    last_token: LastToken,
    /// Among the connections of the microVM that it was last used for.
    seat: Mutex<Option<Arc<Seat>>>,
}

impl Client {
    pub(crate) fn new(server_name: Option<ServerName>, served: Served, places: Places) -> Self {
        Self { server_name, served, places, last_token: LastToken::default(), seat: Mutex::default() }
    }

    /// The seat of an admitted request. Without a server name in TLS, one connection may be used for several microVMs; it
    /// counts for the last, and for each that something of it still goes on with.
    fn seat(&self, shared: &Shared, microvm: MicrovmId, size: Size) -> Result<Arc<Seat>, Refusal> {
        // It is written in one step, so a poisoned lock is still good.
        let mut last = self.seat.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seat) = last.as_ref().filter(|seat| seat.microvm == microvm) {
            return Ok(Arc::clone(seat));
        }
        let seat = shared.allowances.seat(microvm, size)?;
        Ok(Arc::clone(last.insert(Arc::new(seat))))
    }
}

/// The app reset the stream of a request in HTTP/2, and so does the edge, for the same reason.
#[derive(Debug, thiserror::Error)]
#[error("the app reset the stream")]
pub(crate) struct Reset(#[source] hyper::Error);

/// The host that a request names, kept at no cost until somebody wants to read it.
struct Named {
    header: Option<HeaderValue>,
    target: Option<Authority>,
}

impl Named {
    fn of(request: &Request<Incoming>) -> Self {
        let header = request.headers().get(header::HOST).cloned();
        Self { header, target: request.uri().authority().cloned() }
    }

    /// Bounded, as it comes from anyone and goes to the log.
    fn read(&self) -> String {
        let host = self.header.as_ref().and_then(|host| host.to_str().ok());
        let host = host.or_else(|| self.target.as_ref().map(Authority::as_str)).unwrap_or_default();
        host.chars().take(300).collect()
    }
}

/// Answers a request.
pub(crate) async fn answer(
    shared: Arc<Shared>,
    client: Arc<Client>,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, Reset> {
    let id = headers::request_id();
    let (method, version, named) = (request.method().clone(), request.version(), Named::of(&request));
    let mut record = Record::new(&shared, &id, &method, client.served.busy());
    // In a box, because the library keeps room for the whole of this future with every connection, idle ones too.
    let forwarded = Box::pin(forward(&shared, &client, request, &id)).await;
    let mut response = match forwarded {
        Ok(Answer::Led(response)) => {
            record.led(response.status());
            response.map(|()| ReplyBody::own("", record))
        }
        Ok(Answer::App { response, version, held }) => {
            record.answered(response.status(), &held.activity);
            let silence = shared.config.limits.silence;
            response.map(|body| ReplyBody::app(body, version, held, silence, record))
        }
        Err(refusal) => {
            refusal.log(&id, &named.read(), &method);
            if let Some(limit) = refusal.limit() {
                shared.counters.refused_by(limit);
            }
            match refusal {
                Refusal::NoAnswer(error) if version == Version::HTTP_2 && refusal::is_reset(&error) => {
                    record.broke(Fault::App);
                    return Err(Reset(error));
                }
                refusal => refuse(&refusal, record),
            }
        }
    };
    response.headers_mut().insert(headers::REQUEST_ID, id);
    Ok(response)
}

/// A request that is not refused.
enum Answer {
    /// The app's answer.
    App { response: Response<Incoming>, version: Version, held: Held },
    /// A link leads on.
    Led(Response<()>),
}

async fn forward(
    shared: &Arc<Shared>,
    client: &Arc<Client>,
    mut request: Request<Incoming>,
    id: &HeaderValue,
) -> Result<Answer, Refusal> {
    let limits = &shared.config.limits;
    let on_client_upgrade = hyper::upgrade::on(&mut request);
    let (mut head, body) = request.into_parts();
    let over_http2 = OverHttp2::translate(&mut head)?;
    let upgrade = headers::upgrade(&head.headers);
    // A client that asked whether to send its body waits for the answer, and a refusal says no.
    let http2 = head.version == Version::HTTP_2;
    let linger = (!http2 && !head.headers.contains_key(header::EXPECT))
        .then_some(Linger { bytes: limits.linger_bytes, time: limits.linger });
    let mut body = RequestBody::new(body, head.version, limits.request_body_bytes, linger);
    if let Some(refusal) = client.places.refusal() {
        return Err(refusal);
    }
    if head.headers.len() > limits.header_fields {
        return Err(Refusal::TooManyFields(limits.header_fields));
    }
    if body.is_too_long() {
        return Err(Refusal::BodyTooLong(limits.request_body_bytes));
    }

    let target = route::read(
        &head.method,
        &head.uri,
        head.version,
        &head.headers,
        upgrade.as_ref(),
        client.server_name.as_ref(),
        &shared.config.domain_suffix,
    )?;
    let now = now();
    let opened = client.last_token.open(target.token, &shared.keys);
    let (claims, endpoint) = route::authenticate(&target, opened, now)?;
    let behind = shared.directory.behind(&endpoint).await.map_err(Refusal::Unavailable)?;
    let (Behind { microvm, size, links, .. }, to) = route::admit(&claims, behind, &target)?;
    let (port, shell) = match to {
        To::App(port) => (port, None),
        To::Shell => (shell::PORT, Some(shell::Wanted::read(&head.uri, &head.headers)?)),
        To::Link => {
            client.seat(shared, microvm, size)?.request()?;
            return link::opened(&head.uri, target.token, claims.expires_unix - now).map(Answer::Led);
        }
    };
    let seat = client.seat(shared, microvm, size)?;
    seat.request()?;
    if links {
        link::strip_cookie(&mut head.headers);
    }

    let activity = Activity::new(Arc::clone(&shared.directory), Arc::clone(&shared.counters), microvm);
    // Until the answer begins its own limit counts, which may be the longer one.
    let silence = limits.silence.max(limits.answer);
    body.count_for(Arc::clone(&activity), client.served.clone(), &seat, silence);
    if http2 {
        headers::from_http2(&mut head.headers, &head.uri, !body.is_end_stream());
    }
    let wants = Wants::read(&head.headers, upgrade.is_some(), http2);
    let upgrade = upgrade.map(|to| Upgrade {
        is_marked: websocket::offers_marker(&head.headers),
        on_client: on_client_upgrade,
        over_http2,
        to,
    });
    headers::to_app(&mut head.headers, id, upgrade.as_ref().map(|upgrade| upgrade.to.clone()));
    let mut to_app = Request::new(body);
    *to_app.method_mut() = head.method;
    *to_app.uri_mut() = origin_form(&head.uri);
    *to_app.headers_mut() = head.headers;

    let to = Destination { microvm, port, shell: shell.as_ref().map(|wanted| (wanted, &*seat)), wants };
    let Reply { mut response, share } = upstream::exchange(shared, to, to_app, &activity).await?;
    let version = response.version();
    // The versions of both sides are their own; the client's is known to the library.
    *response.version_mut() = Version::HTTP_11;
    if links {
        link::strip_set_cookie(response.headers_mut());
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let upgrade = upgrade.ok_or(Refusal::BadAnswer("it changes to a protocol nobody asked for"))?;
        upgrade.begin(shared, client, &mut response, &activity, &seat)?;
    } else {
        if let Some(coding) = response.headers().get(header::TRANSFER_ENCODING)
            && !coding.as_bytes().eq_ignore_ascii_case(b"chunked")
        {
            return Err(Refusal::BadAnswer("no transfer encoding but chunked is known"));
        }
        // To CONNECT, any such answer means that there is a tunnel.
        if response.status().is_success() && upgrade.is_some_and(|upgrade| upgrade.over_http2.is_some()) {
            return Err(Refusal::BadAnswer("it answers a WebSocket handshake without one"));
        }
        headers::to_client(response.headers_mut(), None);
    }
    Ok(Answer::App { response, version, held: Held { activity, share, seat } })
}

/// A change of protocol that the client asked for.
struct Upgrade {
    to: HeaderValue,
    /// Its subprotocols are in part the edge's.
    is_marked: bool,
    over_http2: Option<OverHttp2>,
    on_client: OnUpgrade,
}

impl Upgrade {
    /// The app said yes: makes its answer the client's, and joins both.
    fn begin(
        self,
        shared: &Arc<Shared>,
        client: &Arc<Client>,
        response: &mut Response<Incoming>,
        activity: &Arc<Activity>,
        seat: &Arc<Seat>,
    ) -> Result<(), Refusal> {
        let on_app = hyper::upgrade::on(&mut *response);
        let headers = response.headers_mut();
        let chosen = headers.get(header::UPGRADE).cloned();
        let chosen = chosen.ok_or(Refusal::BadAnswer("it does not say which protocol it changes to"))?;
        if self.is_marked {
            websocket::choose(headers);
        }
        if let Some(over_http2) = self.over_http2 {
            over_http2.accepted(headers)?;
            headers::to_client(headers, None);
            *response.status_mut() = StatusCode::OK;
        } else {
            headers::to_client(headers, Some(chosen));
        }
        let (client, activity, seat) = (Arc::clone(client), Arc::clone(activity), Arc::clone(seat));
        let (shared, on_client) = (Arc::clone(shared), self.on_client);
        let (tasks, cut) = (shared.tasks.clone(), shared.cut.clone());
        tasks.spawn(async move {
            // The tunnel keeps the connection's places, and tells its reader that no request head is awaited.
            let mut busy = client.served.busy();
            busy.whole();
            let between = Between { activity: &activity, served: &client.served, seat: &seat };
            tokio::select! {
                () = tunnel::join(on_client, on_app, between, &shared.config.limits) => {}
                () = cut.cancelled() => {}
            }
        });
        Ok(())
    }
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

fn refuse(refusal: &Refusal, mut record: Record) -> Response<ReplyBody> {
    record.refused(refusal.status(), refusal.fault());
    let mut response = Response::new(ReplyBody::own(refusal.body(), record));
    *response.status_mut() = refusal.status();
    let headers = response.headers_mut();
    if !refusal.body().is_empty() {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    if let Ok(reason) = HeaderValue::from_str(&refusal.proxy_status()) {
        headers.insert(PROXY_STATUS, reason);
    }
    if let Some(seconds) = refusal.retry_after_seconds() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
