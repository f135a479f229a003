use std::pin::Pin;

use axum::body::Body;
use futures_util::{StreamExt, future::poll_immediate, stream};
use http_body::Frame;
use tokio::sync::mpsc;

use super::upload::{Upload, Watched};

#[tokio::test]
async fn a_client_is_waited_for_until_something_has_come_whether_or_not_the_handler_looks() {
    let (sender, receiver) = mpsc::channel(1);
    let parts =
        stream::unfold(receiver, async |mut parts: mpsc::Receiver<&'static str>| Some((parts.recv().await?, parts)));
    let upload = Upload::default();
    let mut body = Watched::new(Body::from_stream(parts.map(Ok::<_, axum::Error>)), upload.clone());
    let mut next = async || {
        let frame = poll_immediate(std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut body), cx)));
        frame.await.map(|frame| frame.map(|frame| frame.map(Frame::into_data)))
    };

    assert!(upload.awaited().is_none());
    assert!(next().await.is_none());
    let since = upload.awaited().expect("it is waited for");
    assert!(next().await.is_none());
    assert_eq!(upload.awaited(), Some(since));
    sender.send("part").await.unwrap();
    assert!(upload.awaited().is_none());
    assert_eq!(next().await.unwrap().unwrap().unwrap().unwrap(), "part");
    assert!(upload.awaited().is_none());

    assert!(next().await.is_none());
    upload.give_up();
    assert!(next().await.unwrap().unwrap().is_err());
    assert!(next().await.unwrap().is_none());
    assert!(upload.awaited().is_none());
}
