CREATE TABLE public.link_order (
    key character varying(64) NOT NULL,
    site character varying(63) NOT NULL,
    run character varying(63) NOT NULL,
    round integer NOT NULL,
    message_type character varying(40) NOT NULL,
    content bytea NOT NULL,
    state character varying(10) NOT NULL,
    attempt integer NOT NULL,
    submission bigint NOT NULL,
    expires double precision
);
CREATE TABLE public.link_report (
    key character varying(64) NOT NULL,
    content bytea NOT NULL
);
CREATE TABLE public.link_session (
    site character varying(63) NOT NULL,
    state_id character varying(64) NOT NULL,
    instance_id character varying(64) NOT NULL,
    version character varying(40) NOT NULL,
    is_open boolean NOT NULL,
    opened double precision NOT NULL,
    last_contact double precision NOT NULL
);
CREATE TABLE public.link_version (
    version integer NOT NULL
);
INSERT INTO public.link_order VALUES ('0000000000000000000000000000000000000000000000000000000000000001', 'north', 'run', 1, 'train', '\x0a07080312036162630a26088080401a20000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f1001', 'answered', 0, 4611686018427387904, NULL);
INSERT INTO public.link_order VALUES ('0000000000000000000000000000000000000000000000000000000000000002', 'north', 'run', 2, 'train', '\x0a07080312036162630a26088080401a20000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f1001', 'open', 1, 4611686018427387904, NULL);
INSERT INTO public.link_order VALUES ('0000000000000000000000000000000000000000000000000000000000000003', 'south', 'run', 1, 'evaluate', '\x0a07080312036162630a26088080401a20000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f1001', 'over', 0, 4611686018427387904, 4102444800);
INSERT INTO public.link_report VALUES ('0000000000000000000000000000000000000000000000000000000000000001', '\x0a0a080612067265706f72740a26088080401a20000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f');
INSERT INTO public.link_session VALUES ('north', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', '0.1.0', true, 1790000000, 1790000000);
INSERT INTO public.link_session VALUES ('south', 'cccccccccccccccccccccccccccccccc', 'dddddddddddddddddddddddddddddddd', '0.1.0', false, 1790000000, 1790000000);
INSERT INTO public.link_version VALUES (1);
ALTER TABLE ONLY public.link_order
    ADD CONSTRAINT link_order_pkey PRIMARY KEY (key);
ALTER TABLE ONLY public.link_report
    ADD CONSTRAINT link_report_pkey PRIMARY KEY (key);
ALTER TABLE ONLY public.link_session
    ADD CONSTRAINT link_session_pkey PRIMARY KEY (site);
CREATE INDEX link_order_by_run ON public.link_order USING btree (run, round);
CREATE INDEX link_order_by_site ON public.link_order USING btree (site, state);
ALTER TABLE ONLY public.link_report
    ADD CONSTRAINT link_report_key_fkey FOREIGN KEY (key) REFERENCES public.link_order(key);
