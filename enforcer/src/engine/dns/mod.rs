//! DNS as the host sees it: messages (`wire`), streams of them (`stream`), and what they taught us (`table`).
