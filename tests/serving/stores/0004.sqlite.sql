BEGIN TRANSACTION;
CREATE TABLE mmrec_api_keys (
	number INTEGER NOT NULL, 
	id VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	hash VARCHAR NOT NULL, 
	prefix VARCHAR NOT NULL, 
	created INTEGER NOT NULL, 
	expires INTEGER, 
	revoked INTEGER, 
	last_used INTEGER, 
	requests_per_minute INTEGER, 
	tokens_per_day INTEGER, 
	PRIMARY KEY (number), 
	UNIQUE (id), 
	UNIQUE (prefix)
);
INSERT INTO "mmrec_api_keys" VALUES(1,'key_00000000000000000000000000000001','Ayşe','0000000000000000000000000000000000000000000000000000000000000000','mmrec-000000',1795000000,NULL,NULL,1795000003,60,100000);
INSERT INTO "mmrec_api_keys" VALUES(2,'key_00000000000000000000000000000002','Işık','0000000000000000000000000000000000000000000000000000000000000001','mmrec-000001',1795000001,NULL,1795000004,NULL,NULL,NULL);
CREATE TABLE mmrec_responses (
	previous_response_id VARCHAR, 
	model VARCHAR NOT NULL, 
	input_items TEXT NOT NULL, 
	response TEXT NOT NULL, 
	number INTEGER NOT NULL, 
	id VARCHAR NOT NULL, 
	key_id VARCHAR, 
	created INTEGER NOT NULL, 
	PRIMARY KEY (number), 
	UNIQUE (id), 
	FOREIGN KEY(key_id) REFERENCES mmrec_api_keys (id)
);
INSERT INTO "mmrec_responses" VALUES(NULL,'tiny','[{"id": "msg_00000000000000000000000000000007", "status": "completed", "type": "message", "role": "user", "content": [{"type": "input_text", "text": "Ankara''da hava nas\u0131l? \u0131\u011f\u00fc\u015f\u00f6\u00e7 \u0130 \ud83d\ude42 '' \" \u0000 \ud800"}]}]','{"id": "resp_00000000000000000000000000000006", "object": "response", "created_at": 1795000100, "status": "completed", "error": null, "incomplete_details": null, "instructions": "K\u0131sa yaz.", "metadata": {}, "model": "tiny", "output": [{"type": "function_call", "id": "fc_00000000000000000000000000000005", "call_id": "call_1", "name": "weather", "arguments": "{\"city\": \"Ankara\"}", "status": "completed"}], "parallel_tool_calls": true, "previous_response_id": null, "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0}',1,'resp_00000000000000000000000000000006','key_00000000000000000000000000000001',1795000009);
INSERT INTO "mmrec_responses" VALUES('resp_00000000000000000000000000000006','tiny','[{"id": "msg_0000000000000000000000000000000a", "status": "completed", "type": "function_call_output", "call_id": "call_1", "output": "12\u00b0"}]','{"id": "resp_00000000000000000000000000000009", "object": "response", "created_at": 1795000100, "status": "completed", "error": null, "incomplete_details": null, "instructions": "K\u0131sa yaz.", "metadata": {}, "model": "tiny", "output": [{"type": "message", "id": "msg_00000000000000000000000000000008", "status": "completed", "role": "assistant", "content": [{"type": "output_text", "text": "On iki derece.", "annotations": [], "logprobs": []}]}], "parallel_tool_calls": true, "previous_response_id": "resp_00000000000000000000000000000006", "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0}',2,'resp_00000000000000000000000000000009','key_00000000000000000000000000000001',1795000010);
INSERT INTO "mmrec_responses" VALUES(NULL,'tiny','[{"id": "msg_0000000000000000000000000000000d", "status": "completed", "type": "message", "role": "user", "content": [{"type": "input_text", "text": "Kim o?"}]}, {"id": "msg_0000000000000000000000000000000e", "status": "completed", "type": "message", "role": "assistant", "content": [{"type": "input_text", "text": "Ben."}]}, {"id": "msg_0000000000000000000000000000000f", "status": "completed", "type": "message", "role": "user", "content": [{"type": "input_text", "text": "Kim?"}]}]','{"id": "resp_0000000000000000000000000000000c", "object": "response", "created_at": 1795000100, "status": "incomplete", "error": null, "incomplete_details": {"reason": "max_output_tokens"}, "instructions": "K\u0131sa yaz.", "metadata": {}, "model": "tiny", "output": [{"type": "message", "id": "msg_0000000000000000000000000000000b", "status": "incomplete", "role": "assistant", "content": [{"type": "output_text", "text": "Be", "annotations": [], "logprobs": []}]}], "parallel_tool_calls": true, "previous_response_id": null, "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0}',3,'resp_0000000000000000000000000000000c',NULL,1795000011);
CREATE TABLE mmrec_schema (
	version INTEGER NOT NULL, 
	PRIMARY KEY (version)
);
INSERT INTO "mmrec_schema" VALUES(2);
CREATE TABLE mmrec_sessions (
	model VARCHAR NOT NULL, 
	adapter VARCHAR, 
	length INTEGER NOT NULL, 
	file_name VARCHAR NOT NULL, 
	used INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	id VARCHAR NOT NULL, 
	key_id VARCHAR, 
	created INTEGER NOT NULL, 
	PRIMARY KEY (number), 
	UNIQUE (id), 
	FOREIGN KEY(key_id) REFERENCES mmrec_api_keys (id)
);
INSERT INTO "mmrec_sessions" VALUES('tiny','poet',7,'00000000000000000000000000000001.safetensors',1795000006,1,'sess_00000000000000000000000000000003','key_00000000000000000000000000000001',1795000005);
INSERT INTO "mmrec_sessions" VALUES('tiny',NULL,50000,'00000000000000000000000000000002.safetensors',1795000008,2,'sess_00000000000000000000000000000004',NULL,1795000007);
CREATE TABLE mmrec_usage (
	key_id VARCHAR NOT NULL, 
	day DATE NOT NULL, 
	requests INTEGER NOT NULL, 
	prompt_tokens INTEGER NOT NULL, 
	completion_tokens INTEGER NOT NULL, 
	PRIMARY KEY (key_id, day)
);
INSERT INTO "mmrec_usage" VALUES('key_00000000000000000000000000000001','2026-11-21',2,8589934599,10);
INSERT INTO "mmrec_usage" VALUES('','2026-11-21',1,3,4);
CREATE TABLE mmrec_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT mmrec_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "mmrec_version" VALUES('0004');
CREATE INDEX ix_mmrec_sessions_key_id ON mmrec_sessions (key_id);
CREATE INDEX ix_mmrec_responses_key_id ON mmrec_responses (key_id);
COMMIT;
