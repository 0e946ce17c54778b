//! What bytes stand at physical address P?
