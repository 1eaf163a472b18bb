CREATE TABLE public.mmrec_api_keys (
    number bigint NOT NULL,
    id character varying NOT NULL,
    name character varying NOT NULL,
    hash character varying NOT NULL,
    prefix character varying NOT NULL,
    created bigint NOT NULL,
    expires bigint,
    revoked bigint,
    last_used bigint,
    requests_per_minute bigint,
    tokens_per_day bigint
);
CREATE SEQUENCE public.mmrec_api_keys_number_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.mmrec_api_keys_number_seq OWNED BY public.mmrec_api_keys.number;
CREATE TABLE public.mmrec_responses (
    previous_response_id character varying,
    model character varying NOT NULL,
    input_items text NOT NULL,
    response text NOT NULL,
    number bigint NOT NULL,
    id character varying NOT NULL,
    key_id character varying,
    created bigint NOT NULL
);
CREATE SEQUENCE public.mmrec_responses_number_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.mmrec_responses_number_seq OWNED BY public.mmrec_responses.number;
CREATE TABLE public.mmrec_schema (
    version bigint NOT NULL
);
CREATE SEQUENCE public.mmrec_schema_version_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.mmrec_schema_version_seq OWNED BY public.mmrec_schema.version;
CREATE TABLE public.mmrec_sessions (
    model character varying NOT NULL,
    adapter character varying,
    length bigint NOT NULL,
    file_name character varying NOT NULL,
    used bigint NOT NULL,
    number bigint NOT NULL,
    id character varying NOT NULL,
    key_id character varying,
    created bigint NOT NULL
);
CREATE SEQUENCE public.mmrec_sessions_number_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.mmrec_sessions_number_seq OWNED BY public.mmrec_sessions.number;
CREATE TABLE public.mmrec_usage (
    key_id character varying NOT NULL,
    day date NOT NULL,
    requests bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL
);
ALTER TABLE ONLY public.mmrec_api_keys ALTER COLUMN number SET DEFAULT nextval('public.mmrec_api_keys_number_seq'::regclass);
ALTER TABLE ONLY public.mmrec_responses ALTER COLUMN number SET DEFAULT nextval('public.mmrec_responses_number_seq'::regclass);
ALTER TABLE ONLY public.mmrec_schema ALTER COLUMN version SET DEFAULT nextval('public.mmrec_schema_version_seq'::regclass);
ALTER TABLE ONLY public.mmrec_sessions ALTER COLUMN number SET DEFAULT nextval('public.mmrec_sessions_number_seq'::regclass);
INSERT INTO public.mmrec_api_keys VALUES (1, 'key_00000000000000000000000000000001', 'Ayşe', '0000000000000000000000000000000000000000000000000000000000000000', 'mmrec-000000', 1795000000, NULL, NULL, 1795000003, 60, 100000);
INSERT INTO public.mmrec_api_keys VALUES (2, 'key_00000000000000000000000000000002', 'Işık', '0000000000000000000000000000000000000000000000000000000000000001', 'mmrec-000001', 1795000001, NULL, 1795000004, NULL, NULL, NULL);
INSERT INTO public.mmrec_responses VALUES (NULL, 'tiny', '[{"id": "msg_00000000000000000000000000000007", "status": "completed", "type": "message", "role": "user", "content": [{"type": "input_text", "text": "Ankara''da hava nas\u0131l? \u0131\u011f\u00fc\u015f\u00f6\u00e7 \u0130 \ud83d\ude42 '' \" \u0000 \ud800"}]}]', '{"id": "resp_00000000000000000000000000000006", "object": "response", "created_at": 1795000100, "status": "completed", "error": null, "incomplete_details": null, "instructions": "K\u0131sa yaz.", "metadata": {}, "model": "tiny", "output": [{"type": "function_call", "id": "fc_00000000000000000000000000000005", "call_id": "call_1", "name": "weather", "arguments": "{\"city\": \"Ankara\"}", "status": "completed"}], "parallel_tool_calls": true, "previous_response_id": null, "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0}', 1, 'resp_00000000000000000000000000000006', 'key_00000000000000000000000000000001', 1795000009);
INSERT INTO public.mmrec_responses VALUES ('resp_00000000000000000000000000000006', 'tiny', '[{"id": "msg_0000000000000000000000000000000a", "status": "completed", "type": "function_call_output", "call_id": "call_1", "output": "12\u00b0"}]', '{"id": "resp_00000000000000000000000000000009", "object": "response", "created_at": 1795000100, "status": "completed", "error": null, "incomplete_details": null, "instructions": "K\u0131sa yaz.", "metadata": {}, "model": "tiny", "output": [{"type": "message", "id": "msg_00000000000000000000000000000008", "status": "completed", "role": "assistant", "content": [{"type": "output_text", "text": "On iki derece.", "annotations": [], "logprobs": []}]}], "parallel_tool_calls": true, "previous_response_id": "resp_00000000000000000000000000000006", "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0}', 2, 'resp_00000000000000000000000000000009', 'key_00000000000000000000000000000001', 1795000010);
INSERT INTO public.mmrec_responses VALUES (NULL, 'tiny', '[{"id": "msg_0000000000000000000000000000000d", "status": "completed", "type": "message", "role": "user", "content": [{"type": "input_text", "text": "Kim o?"}]}, {"id": "msg_0000000000000000000000000000000e", "status": "completed", "type": "message", "role": "assistant", "content": [{"type": "input_text", "text": "Ben."}]}, {"id": "msg_0000000000000000000000000000000f", "status": "completed", "type": "message", "role": "user", "content": [{"type": "input_text", "text": "Kim?"}]}]', '{"id": "resp_0000000000000000000000000000000c", "object": "response", "created_at": 1795000100, "status": "incomplete", "error": null, "incomplete_details": {"reason": "max_output_tokens"}, "instructions": "K\u0131sa yaz.", "metadata": {}, "model": "tiny", "output": [{"type": "message", "id": "msg_0000000000000000000000000000000b", "status": "incomplete", "role": "assistant", "content": [{"type": "output_text", "text": "Be", "annotations": [], "logprobs": []}]}], "parallel_tool_calls": true, "previous_response_id": null, "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0}', 3, 'resp_0000000000000000000000000000000c', NULL, 1795000011);
INSERT INTO public.mmrec_schema VALUES (2);
INSERT INTO public.mmrec_sessions VALUES ('tiny', 'poet', 7, '00000000000000000000000000000001.safetensors', 1795000006, 1, 'sess_00000000000000000000000000000003', 'key_00000000000000000000000000000001', 1795000005);
INSERT INTO public.mmrec_sessions VALUES ('tiny', NULL, 50000, '00000000000000000000000000000002.safetensors', 1795000008, 2, 'sess_00000000000000000000000000000004', NULL, 1795000007);
INSERT INTO public.mmrec_usage VALUES ('key_00000000000000000000000000000001', '2026-11-21', 2, 8589934599, 10);
INSERT INTO public.mmrec_usage VALUES ('', '2026-11-21', 1, 3, 4);
CREATE TABLE public.mmrec_version (
    version_num character varying(32) NOT NULL
);
INSERT INTO public.mmrec_version VALUES ('0004');
SELECT pg_catalog.setval('public.mmrec_api_keys_number_seq', 2, true);
SELECT pg_catalog.setval('public.mmrec_responses_number_seq', 3, true);
SELECT pg_catalog.setval('public.mmrec_schema_version_seq', 1, false);
SELECT pg_catalog.setval('public.mmrec_sessions_number_seq', 2, true);
ALTER TABLE ONLY public.mmrec_api_keys
    ADD CONSTRAINT mmrec_api_keys_id_key UNIQUE (id);
ALTER TABLE ONLY public.mmrec_api_keys
    ADD CONSTRAINT mmrec_api_keys_pkey PRIMARY KEY (number);
ALTER TABLE ONLY public.mmrec_api_keys
    ADD CONSTRAINT mmrec_api_keys_prefix_key UNIQUE (prefix);
ALTER TABLE ONLY public.mmrec_responses
    ADD CONSTRAINT mmrec_responses_id_key UNIQUE (id);
ALTER TABLE ONLY public.mmrec_responses
    ADD CONSTRAINT mmrec_responses_pkey PRIMARY KEY (number);
ALTER TABLE ONLY public.mmrec_schema
    ADD CONSTRAINT mmrec_schema_pkey PRIMARY KEY (version);
ALTER TABLE ONLY public.mmrec_sessions
    ADD CONSTRAINT mmrec_sessions_id_key UNIQUE (id);
ALTER TABLE ONLY public.mmrec_sessions
    ADD CONSTRAINT mmrec_sessions_pkey PRIMARY KEY (number);
ALTER TABLE ONLY public.mmrec_usage
    ADD CONSTRAINT mmrec_usage_pkey PRIMARY KEY (key_id, day);
ALTER TABLE ONLY public.mmrec_version
    ADD CONSTRAINT mmrec_version_pkc PRIMARY KEY (version_num);
CREATE INDEX ix_mmrec_responses_key_id ON public.mmrec_responses USING btree (key_id);
CREATE INDEX ix_mmrec_sessions_key_id ON public.mmrec_sessions USING btree (key_id);
ALTER TABLE ONLY public.mmrec_responses
    ADD CONSTRAINT mmrec_responses_key_id_fkey FOREIGN KEY (key_id) REFERENCES public.mmrec_api_keys(id);
ALTER TABLE ONLY public.mmrec_sessions
    ADD CONSTRAINT mmrec_sessions_key_id_fkey FOREIGN KEY (key_id) REFERENCES public.mmrec_api_keys(id);
