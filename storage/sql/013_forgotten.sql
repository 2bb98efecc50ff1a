-- Examples whose text was erased on request. Their id stays, so that no source brings the text back.

CREATE TABLE forgotten (example_id VARCHAR PRIMARY KEY, forgotten_at TIMESTAMP NOT NULL);
