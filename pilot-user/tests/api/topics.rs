//! Topics (local-protocol.md §8).

use std::time::Duration;

use pilot_user::api::{Code, Publisher, Subscription, TOPICS_PORT};
use tokio::time::timeout;

use crate::scene::Scene;

/// Only for hangs.
const LONG: Duration = Duration::from_secs(60);

async fn next(topic: &mut Subscription) -> Option<(u64, u64, Vec<u8>)> {
    let next = timeout(LONG, topic.next()).await.unwrap().unwrap();
    next.map(|it| (it.number, it.missed, it.message))
}

/// L8.1, L8.2: all are sent all from when they came, in order, and are told of the end; who asks for another topic is told, too.
#[tokio::test]
async fn who_subscribes_is_sent_what_is_published() {
    let scene = Scene::new();
    let (a, b) = (scene.node("a"), scene.node("b"));
    let mut builds = Publisher::new(a.listen(TOPICS_PORT).await.unwrap(), "builds");
    assert_eq!(builds.publish(b"nobody hears it").await.unwrap(), 0);
    let mut first = Subscription::open(&b, "a", TOPICS_PORT, "builds").await.unwrap();
    timeout(LONG, builds.wait_for(1)).await.unwrap().unwrap();
    assert_eq!(builds.publish(b"one").await.unwrap(), 1);
    let mut second = Subscription::open(&b, "a", TOPICS_PORT, "builds").await.unwrap();
    timeout(LONG, builds.wait_for(2)).await.unwrap().unwrap();
    assert_eq!(builds.publish(b"").await.unwrap(), 2);
    assert_eq!(next(&mut first).await, Some((1, 0, b"one".to_vec())));
    assert_eq!(next(&mut first).await, Some((2, 0, vec![])));
    assert_eq!(next(&mut second).await, Some((2, 0, vec![])), "from when it came");
    let mut other = Subscription::open(&b, "a", TOPICS_PORT, "bulids").await.unwrap();
    let refused = timeout(LONG, other.next()).await.unwrap().unwrap_err();
    assert_eq!((refused.code, refused.peer_code), (Code::Closed, Some(4)));
    assert!(refused.words.contains("given \"bulids\", published here: \"builds\""), "{refused}");
    assert_eq!(builds.publish(&[0; 65_529]).await.unwrap_err().code, Code::TooLong);
    // Who is gone is forgotten.
    drop(second);
    while builds.publish(b"again").await.unwrap() > 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    builds.publish(b"last").await.unwrap();
    builds.close().await;
    let mut last = None;
    while let Some((_, missed, message)) = next(&mut first).await {
        assert_eq!(missed, 0);
        last = Some(message);
    }
    assert_eq!(last.as_deref(), Some(&b"last"[..]), "what was published comes before the end");
}

/// L8.3: who does not read misses messages, and knows how many; the others get them all.
#[tokio::test]
async fn a_slow_subscriber_stops_no_other() {
    // More than its queue and all credit on the way hold.
    const MESSAGES: u64 = 4000;
    let scene = Scene::new();
    let (a, b) = (scene.node("a"), scene.node("b"));
    let mut topic = Publisher::new(a.listen(TOPICS_PORT).await.unwrap(), "t");
    let mut fast = Subscription::open(&b, "a", TOPICS_PORT, "t").await.unwrap();
    let mut slow = Subscription::open(&b, "a", TOPICS_PORT, "t").await.unwrap();
    timeout(LONG, topic.wait_for(2)).await.unwrap().unwrap();
    let reading = tokio::spawn(async move {
        for number in 0..MESSAGES {
            assert_eq!(next(&mut fast).await, Some((number, 0, vec![1; 2000])));
        }
        fast
    });
    for _ in 0..MESSAGES {
        assert_eq!(timeout(LONG, topic.publish(&[1; 2000])).await.unwrap().unwrap(), 2);
    }
    timeout(LONG, reading).await.unwrap().unwrap();
    // It goes on where there is room again.
    let (mut read, mut missed) = (0, 0);
    let reading = tokio::spawn(async move {
        while let Some((_, gap, _)) = next(&mut slow).await {
            read += 1;
            missed += gap;
        }
        (read, missed)
    });
    let published = tokio::spawn(async move {
        let mut more = 0;
        for _ in 0..500 {
            topic.publish(b"more").await.unwrap();
            more += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        topic.close().await;
        MESSAGES + more
    });
    let published = timeout(LONG, published).await.unwrap().unwrap();
    let (read, missed) = timeout(LONG, reading).await.unwrap().unwrap();
    assert!(missed > 0, "all were held for it");
    assert_eq!(read + missed, published);
}
