//! Rules compiled for asking: which rules name this host, which networks stand in the trie.
