//! From an admitted request to the head of the app's answer: wake, connect, send, and try again where that is safe.

use std::{pin::pin, sync::Arc, time::Duration};

use api::ids::{MicrovmId, VmId};
use futures_util::FutureExt;
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header, request::Parts};
use http_body::Body;
use hyper::{body::Incoming, client::conn::TrySendError, ext::on_informational};
use tokio::time::{Instant, timeout_at};

use crate::{
    activity::Activity,
    allowance::Seat,
    body::{RequestBody, RequestError},
    connect::{ConnectError, Reach, Sender, Wants, Way},
    hold::{Deposit, Outgoing},
    pool::{AppAddress, Share},
    refusal::{self, Refusal, chain},
    server::Shared,
    shell::Wanted,
};

/// How long a body waits for an app that says neither "continue" nor anything else; curl waits as long.
const CONTINUE_WITHIN: Duration = Duration::from_secs(1);

/// How long a body waits to see whether the app's port, of which nothing is known, turns the head down for want of TLS; all
/// but its beginning, which is sent at once and kept. Most bodies do not wait at all, and the others once per port.
const DECLINED_WITHIN: Duration = Duration::from_millis(500);
const BEGINNING: usize = 64 * 1024;

/// How long a request that waited for its microVM waits for the app's port too: an app may begin to listen when it is told
/// that it was resumed. The real service waits as long before it gives up.
const LISTENS_WITHIN: Duration = Duration::from_secs(3);
const LISTENS_PAUSE: Duration = Duration::from_millis(50);

/// Between tries to reach a guest that was just woken, beside the time that each takes.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(250);

/// Where a request goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Destination<'a> {
    pub(crate) microvm: MicrovmId,
    pub(crate) port: u16,
    /// It is not to an app, but to this.
    pub(crate) shell: Option<(&'a Wanted, &'a Seat)>,
    pub(crate) wants: Wants,
}

/// The app's answer, and what it holds of the connection.
pub(crate) struct Reply {
    pub(crate) response: Response<Incoming>,
    pub(crate) share: Option<Share>,
}

/// Sends the request to the app and returns the head of its answer.
///
/// A request is sent again in these cases only, and only if its body was not let go (`hold`): it provably was not looked at
/// (the connection was closed before it was written, or the app says so in HTTP/2); it went in the clear to a port that
/// proves to be TLS; or it left on a kept connection that then closed without an answer, and is of a method that may be
/// repeated (RFC 9110, 9.2.2). The next attempt is on a new connection.
pub(crate) async fn exchange(
    shared: &Shared,
    to: Destination<'_>,
    mut request: Request<RequestBody>,
    activity: &Arc<Activity>,
) -> Result<Reply, Refusal> {
    let limits = &shared.config.limits;
    let deadline = Instant::now() + limits.wake;
    let mut gone = 0;
    let mut woken: Option<Instant> = None;
    let mut kept_allowed = true;
    let host = request.headers().get(header::HOST).cloned().unwrap_or_else(|| HeaderValue::from_static(""));
    loop {
        let (vm, waited) = awake(shared, to.microvm, deadline).await?;
        if waited {
            woken.get_or_insert_with(Instant::now);
        }
        activity.start();
        let Destination { microvm, port, shell, wants } = to;
        let app = AppAddress { vm, port };
        let reach = Reach { edge: shared, microvm, vm, port, shell, host: &host, wants, deadline };
        let Way { sender, kept, proven } = match reach.reach(kept_allowed).await {
            Ok(way) => way,
            Err(ConnectError::Gone) => {
                shared.pool.forget(&app);
                pause_after_gone(&mut gone, limits.attempts_after_gone).await?;
                continue;
            }
            Err(ConnectError::Refused(Refusal::NothingListens(_)))
                if woken.is_some_and(|woken| woken.elapsed() < LISTENS_WITHIN) =>
            {
                tokio::time::sleep(LISTENS_PAUSE).await;
                continue;
            }
            // It runs, and has no processor to itself yet: on a machine full of guests this takes its time.
            Err(ConnectError::Refused(Refusal::Unreachable(error))) if woken.is_some() && Instant::now() < deadline => {
                tracing::debug!(%microvm, cause = chain(&error), "a guest that was just woken is tried again");
                tokio::time::sleep(UNREACHABLE_PAUSE).await;
                continue;
            }
            Err(ConnectError::Refused(refusal)) => return Err(refusal),
        };
        let spare = Spare::of(&request, &sender, kept, proven);
        let repeatable = request.method().is_idempotent();
        let (outgoing, deposit) = hold(request, proven);
        let sent = pin!(send(sender, outgoing));
        let sent = tokio::select! {
            biased;
            sent = sent => sent,
            () = activity.unanswered(limits.answer) => return Err(Refusal::Silent),
        };
        let mut error = match sent {
            Ok((response, sender)) => {
                if !proven && response.status() != StatusCode::BAD_REQUEST {
                    reach.proves_to_be_plain();
                } else if let Some(spare) = spare.filter(|_| !proven)
                    && deposit.as_ref().is_none_or(|deposit| deposit.freeze())
                {
                    // It may be how a server that wants TLS puts it.
                    if Box::pin(reach.proves_to_be_tls()).await
                        && let Some(again) = spare.with(deposit.as_ref())
                    {
                        request = again;
                        continue;
                    }
                    if let Some(deposit) = deposit {
                        deposit.release();
                    }
                }
                let share = match sender {
                    Sender::Single(sender) => {
                        shared.pool.keep(app, sender);
                        None
                    }
                    Sender::Shared(_, share) => Some(share),
                };
                return Ok(Reply { response, share });
            }
            Err(error) => error,
        };
        if let Some(unsent) = error.take_message().and_then(unsent) {
            if !(kept && kept_allowed) {
                pause_after_gone(&mut gone, limits.attempts_after_gone).await?;
            }
            shared.pool.forget(&app);
            kept_allowed = false;
            request = unsent;
            continue;
        }
        let error = error.into_error();
        if error.is_user() {
            return Err(match refusal::beneath(&error) {
                Some(RequestError::TooLong) => Refusal::BodyTooLong(limits.request_body_bytes),
                _ => Refusal::Malformed("its body broke off"),
            });
        }
        let again = spare.and_then(|spare| spare.with(deposit.as_ref()));
        // Even if it is too late for this request, the next will know.
        let may_repeat = kept && kept_allowed && (repeatable || refusal::was_not_looked_at(&error))
            || !proven && Box::pin(reach.proves_to_be_tls()).await;
        if kept {
            shared.pool.forget(&app);
            kept_allowed = false;
        } else if proven {
            // It may be another app by now, with another protocol; the next request finds out.
            shared.apps.forget(microvm, port);
        }
        match again.filter(|_| may_repeat) {
            Some(again) => request = again,
            None => return Err(Refusal::NoAnswer(error)),
        }
    }
}

/// The head of a request, for its second attempt.
struct Spare(Parts);

impl Spare {
    /// `None` if there will be no second attempt, whatever happens.
    fn of(request: &Request<RequestBody>, sender: &Sender, kept: bool, proven: bool) -> Option<Self> {
        let bodyless = request.body().is_end_stream();
        let waits = !proven || request.headers().contains_key(header::EXPECT);
        let may_fail = !proven || kept && (request.method().is_idempotent() || matches!(sender, Sender::Shared(..)));
        if !may_fail || !(bodyless || waits) {
            return None;
        }
        let mut head = Request::new(());
        *head.method_mut() = request.method().clone();
        *head.uri_mut() = request.uri().clone();
        *head.headers_mut() = request.headers().clone();
        Some(Self(head.into_parts().0))
    }

    /// The request once more, if its body was not begun.
    fn with(self, deposit: Option<&Arc<Deposit>>) -> Option<Request<RequestBody>> {
        let body = match deposit {
            Some(deposit) => deposit.take_back()?,
            None => RequestBody::none(),
        };
        Some(Request::from_parts(self.0, body))
    }
}

/// Holds the body of a request back where the app has a say in whether it comes.
fn hold(request: Request<RequestBody>, proven: bool) -> (Request<Outgoing>, Option<Arc<Deposit>>) {
    let asks = request.headers().contains_key(header::EXPECT);
    if request.body().is_end_stream() || proven && !asks {
        return (request.map(Outgoing::Now), None);
    }
    let (head, body) = request.into_parts();
    let (limit, may_send) = if asks { (CONTINUE_WITHIN, 0) } else { (DECLINED_WITHIN, BEGINNING) };
    let (body, deposit) = Outgoing::held(body, limit, may_send);
    let mut request = Request::from_parts(head, body);
    let release = Arc::clone(&deposit);
    on_informational(&mut request, move |response| {
        if response.status() == StatusCode::CONTINUE {
            release.release();
        }
    });
    (request, Some(deposit))
}

async fn send(
    sender: Sender,
    request: Request<Outgoing>,
) -> Result<(Response<Incoming>, Sender), TrySendError<Request<Outgoing>>> {
    match sender {
        Sender::Single(mut sender) => {
            let response = sender.try_send_request(request).await?;
            Ok((response, Sender::Single(sender)))
        }
        Sender::Shared(mut shared, share) => {
            let response = shared.sender.try_send_request(in_http2(request, shared.tls)).await?;
            Ok((response, Sender::Shared(shared, share)))
        }
    }
}

/// Puts a request as HTTP/2 does: the host in the target, and no word of framing.
fn in_http2(mut request: Request<Outgoing>, tls: bool) -> Request<Outgoing> {
    request.headers_mut().remove(header::TRANSFER_ENCODING);
    if let Some(host) = request.headers_mut().remove(header::HOST) {
        let mut target = std::mem::take(request.uri_mut()).into_parts();
        target.scheme = Some(if tls { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP });
        target.authority = host.as_bytes().try_into().ok();
        // A host was read from it before, so it is one.
        *request.uri_mut() = Uri::from_parts(target).unwrap_or_default();
    }
    *request.version_mut() = Version::HTTP_2;
    request
}

/// A request that was not sent, put as it was before [`in_http2`].
fn unsent(request: Request<Outgoing>) -> Option<Request<RequestBody>> {
    let (mut head, body) = request.into_parts();
    let body = body.into_body()?;
    if let Some(host) = head.uri.authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok()) {
        head.headers.insert(header::HOST, host);
        head.uri = head.uri.path_and_query().cloned().map(Uri::from).unwrap_or_default();
    }
    head.version = Version::HTTP_11;
    Some(Request::from_parts(head, body))
}

/// The VM that runs the microVM, once it does, and whether it had to be waited for.
async fn awake(shared: &Shared, microvm: MicrovmId, deadline: Instant) -> Result<(VmId, bool), Refusal> {
    let mut wake = pin!(shared.directory.awake(&microvm));
    // One that runs already is answered for at once, and no request to it counts as waiting.
    let (answer, waited) = match wake.as_mut().now_or_never() {
        Some(answer) => (answer, false),
        None => {
            let place = shared.waiting.enter(microvm).ok_or(Refusal::TooManyWaiting)?;
            shared.counters.holds.add(1);
            shared.counters.wakes.add(u64::from(place.is_first));
            (timeout_at(deadline, wake).await.map_err(|_| Refusal::WakeTooSlow)?, true)
        }
    };
    Ok((answer.map_err(Refusal::Unavailable)?, waited))
}

/// Counts one more VM that was gone; waits a little, for the directory to learn of it.
async fn pause_after_gone(count: &mut u32, limit: u32) -> Result<(), Refusal> {
    *count += 1;
    if *count > limit {
        return Err(Refusal::Gone);
    }
    // The first time it is most likely a suspend that the directory itself ordered.
    tokio::time::sleep(Duration::from_millis(50) * (*count - 1)).await;
    Ok(())
}
