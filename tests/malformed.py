"""Requests that are wrong, or only look so, by family (RFC 9112; RFC 9110 5, 8.6, 10.1.1).

Each is followed on the wire by :data:`AFTER`: a server that reads the end of a request in another
place than gunicorn does gives itself away by what it answers to that.
"""

from __future__ import annotations

#: A request that tells where it came from, and ends the connection.
AFTER = b"GET /after HTTP/1.1\r\nHost: after\r\nConnection: close\r\n\r\n"


def _post(*headers: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join((b"POST /upload HTTP/1.1", b"Host: x", *headers, b"", body))


def _get(*lines: bytes) -> bytes:
    return b"\r\n".join((b"GET / HTTP/1.1", b"Host: x", *lines, b"", b""))


def _line(line: bytes) -> bytes:
    return line + b"\r\nHost: x\r\n\r\n"


_CHUNKED = b"Transfer-Encoding: chunked"
_BODY = b"5\r\nhello\r\n0\r\n\r\n"

REQUEST_LINES = {
    "lower-case-method": _line(b"get / HTTP/1.1"),
    "mixed-case-method": _line(b"Get / HTTP/1.1"),
    "method-too-short": _line(b"GE / HTTP/1.1"),
    "method-too-long": _line(b"G" * 21 + b" / HTTP/1.1"),
    "method-with-hash": _line(b"GE#T / HTTP/1.1"),
    "method-with-paren": _line(b"GE(T / HTTP/1.1"),
    "method-with-quote": _line(b'GE"T / HTTP/1.1'),
    "method-with-nul": _line(b"GE\0T / HTTP/1.1"),
    "method-with-latin": _line(b"GE\xc9T / HTTP/1.1"),
    "no-method": _line(b" / HTTP/1.1"),
    "no-target": _line(b"GET HTTP/1.1"),
    "empty-target": _line(b"GET  HTTP/1.1"),
    "no-version": _line(b"GET /"),
    "only-method": _line(b"GET"),
    "two-spaces-after-method": _line(b"GET  / HTTP/1.1"),
    "two-spaces-after-target": _line(b"GET /  HTTP/1.1"),
    "space-in-target": _line(b"GET /a b HTTP/1.1"),
    "tab-after-method": _line(b"GET\t/ HTTP/1.1"),
    "tab-in-target": _line(b"GET /\ta HTTP/1.1"),
    "space-after-version": _line(b"GET / HTTP/1.1 "),
    "tab-after-version": _line(b"GET / HTTP/1.1\t"),
    "space-before-method": _line(b" GET / HTTP/1.1"),
    "target-with-nul": _line(b"GET /\0 HTTP/1.1"),
    "target-with-del": _line(b"GET /\x7f HTTP/1.1"),
    "target-with-latin": _line(b"GET /\xe9 HTTP/1.1"),
    "target-with-cr": _line(b"GET /\rx HTTP/1.1"),
    "target-with-lf": _line(b"GET /\nx HTTP/1.1"),
    "target-without-slash": _line(b"GET index.html HTTP/1.1"),
    "target-asterisk": _line(b"GET * HTTP/1.1"),
    "target-authority": _line(b"GET example.org:80 HTTP/1.1"),
    "target-bad-ipv6": _line(b"GET http://[::1/ HTTP/1.1"),
    "target-backslash": _line(b"GET /a\\b HTTP/1.1"),
    "target-bad-escape": _line(b"GET /%zz%1 HTTP/1.1"),
    "target-quotes": _line(b'GET /"<>{}|^` HTTP/1.1'),
    "version-0.9": _line(b"GET / HTTP/0.9"),
    "version-1.2": _line(b"GET / HTTP/1.2"),
    "version-1.9": _line(b"GET / HTTP/1.9"),
    "version-2.0": _line(b"GET / HTTP/2.0"),
    "version-3.0": _line(b"GET / HTTP/3.0"),
    "version-1": _line(b"GET / HTTP/1"),
    "version-1.10": _line(b"GET / HTTP/1.10"),
    "version-01.1": _line(b"GET / HTTP/01.1"),
    "version-comma": _line(b"GET / HTTP/1,1"),
    "version-lower-case": _line(b"GET / http/1.1"),
    "version-other": _line(b"GET / FTP/1.1"),
    "version-digits-unicode": _line(b"GET / HTTP/1.\xb2"),
    "version-sip": _line(b"OPTIONS / SIP/2.0"),
    "http2-preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "tls-hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)),
    "proxy-line": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + _get(),
    "garbage": b"\xff\xfe\x00\x01" * 20 + b"\r\n\r\n",
    "nul-bytes": b"\0" * 100 + b"\r\n\r\n",
}

LINE_ENDS = {
    "one-empty-line-first": b"\r\n" + _get(),
    "two-empty-lines-first": b"\r\n\r\n" + _get(),
    "lf-first": b"\n" + _get(),
    "cr-first": b"\r" + _get(),
    "spaces-line-first": b"  \r\n" + _get(),
    "bare-lf-after-request-line": b"GET / HTTP/1.1\nHost: x\r\n\r\n",
    "bare-lf-after-header": b"GET / HTTP/1.1\r\nHost: x\nX-A: 1\r\n\r\n",
    "bare-lf-everywhere": b"GET / HTTP/1.1\nHost: x\n\n",
    "bare-lf-at-the-end": b"GET / HTTP/1.1\r\nHost: x\r\n\n",
    "lf-cr-lf-at-the-end": b"GET / HTTP/1.1\r\nHost: x\n\r\n",
    "bare-cr-after-request-line": b"GET / HTTP/1.1\rHost: x\r\n\r\n",
    "bare-cr-after-header": b"GET / HTTP/1.1\r\nHost: x\rX-A: 1\r\n\r\n",
    "bare-cr-at-the-end": b"GET / HTTP/1.1\r\nHost: x\r\n\r",
    "cr-cr-lf": b"GET / HTTP/1.1\r\r\nHost: x\r\n\r\n",
    "cr-cr-lf-after-header": b"GET / HTTP/1.1\r\nHost: x\r\r\n\r\n",
    "lf-in-value-hides-length": _post(b"X-A: 1\nContent-Length: 5", body=b"hello"),
    "cr-in-value-hides-length": _post(b"X-A: 1\rContent-Length: 5", body=b"hello"),
    "nel-as-line-end": b"GET / HTTP/1.1\r\nHost: x\x85X-A: 1\r\n\r\n",
    "vertical-tab-as-line-end": b"GET / HTTP/1.1\r\nHost: x\x0bX-A: 1\r\n\r\n",
    "form-feed-as-line-end": b"GET / HTTP/1.1\r\nHost: x\x0cX-A: 1\r\n\r\n",
}

FIELDS = {
    "no-colon": _get(b"X-A 1"),
    "empty-name": _get(b": 1"),
    "only-colon": _get(b":"),
    "space-before-colon": _get(b"X-A : 1"),
    "tab-before-colon": _get(b"X-A\t: 1"),
    "space-in-name": _get(b"X A: 1"),
    "space-before-name": _get(b"X-B: 1", b" X-A: 1"),
    "tab-before-name": _get(b"X-B: 1", b"\tX-A: 1"),
    "space-before-first-name": b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
    "folded-value": _get(b"X-A: 1", b" 2"),
    "folded-length": _post(b"Content-Length:", b" 5", body=b"hello"),
    "folded-coding": _post(b"Transfer-Encoding:", b"\tchunked", body=_BODY),
    "name-with-paren": _get(b"X(A: 1"),
    "name-with-slash": _get(b"X/A: 1"),
    "name-with-at": _get(b"X@A: 1"),
    "name-with-brackets": _get(b"X[A]: 1"),
    "name-with-quote": _get(b'X"A: 1'),
    "name-with-nul": _get(b"X\0A: 1"),
    "name-with-latin": _get(b"X-\xe9: 1"),
    "name-with-sharp-s": _get(b"X-\xdf: 1"),
    "name-with-del": _get(b"X\x7fA: 1"),
    "name-with-underscore": _get(b"X_A: 1", b"X-A: 2"),
    "length-with-underscore": _post(b"Content_Length: 5", body=b"hello"),
    "coding-with-underscore": _post(b"Transfer_Encoding: chunked", body=_BODY),
    "host-with-underscore": _get(b"HO_ST: y"),
    "script-name": _get(b"SCRIPT_NAME: /x"),
    "path-info": _get(b"PATH_INFO: /x"),
    "remote-user": _get(b"Remote_User: root"),
    "value-with-nul": _get(b"X-A: a\0b"),
    "value-with-bell": _get(b"X-A: a\x07b"),
    "value-with-escape": _get(b"X-A: a\x1bb"),
    "value-with-del": _get(b"X-A: a\x7fb"),
    "value-with-unit-separator": _get(b"X-A: a\x1fb"),
    "value-with-c1": _get(b"X-A: a\x9fb"),
    "value-with-tab": _get(b"X-A: a\tb"),
    "value-of-spaces": _get(b"X-A:   \t "),
    "two-hosts": _get(b"Host: y"),
    "two-equal-hosts": _get(b"Host: x"),
    "no-host": b"GET / HTTP/1.1\r\nX-A: 1\r\n\r\n",
    "empty-host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "host-list": b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
    "host-with-path": b"GET / HTTP/1.1\r\nHost: a/b?c@d\r\n\r\n",
    "two-content-types": _get(b"Content-Type: a/b", b"Content-Type: c/d"),
    "expect-other": _get(b"Expect: 200-ok"),
    "expect-empty": _get(b"Expect:"),
    "expect-list": _get(b"Expect: 100-continue, 100-continue"),
    "expect-twice": _get(b"Expect: 100-continue", b"Expect: 100-continue"),
    "expect-upper-case": _get(b"EXPECT: 100-CONTINUE"),
    "expect-http-1-0": b"POST /upload HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
    "connection-close-list": _get(b"Connection: x, close"),
    "connection-twice": _get(b"Connection: keep-alive", b"Connection: close"),
    "connection-close-padded": _get(b"Connection: \t close \t"),
    "upgrade-h2c": _get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
}

LENGTHS = {
    "length-and-coding": _post(b"Content-Length: 5", _CHUNKED, body=_BODY),
    "coding-and-length": _post(_CHUNKED, b"Content-Length: 5", body=_BODY),
    "length-0-and-coding": _post(b"Content-Length: 0", _CHUNKED, body=_BODY),
    "length-twice": _post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"),
    "length-differs": _post(b"Content-Length: 5", b"Content-Length: 6", body=b"hello!"),
    "length-list": _post(b"Content-Length: 5, 5", body=b"hello"),
    "length-list-differs": _post(b"Content-Length: 5, 6", body=b"hello!"),
    "length-plus": _post(b"Content-Length: +5", body=b"hello"),
    "length-minus": _post(b"Content-Length: -5", body=b"hello"),
    "length-minus-zero": _post(b"Content-Length: -0"),
    "length-hex": _post(b"Content-Length: 0x5", body=b"hello"),
    "length-float": _post(b"Content-Length: 5.0", body=b"hello"),
    "length-exponent": _post(b"Content-Length: 5e0", body=b"hello"),
    "length-underscore": _post(b"Content-Length: 1_0", body=b"helloworld"),
    "length-inner-space": _post(b"Content-Length: 1 0", body=b"helloworld"),
    "length-superscript": _post(b"Content-Length: \xb2", body=b"he"),
    "length-fraction": _post(b"Content-Length: \xbd", body=b"he"),
    "length-empty": _post(b"Content-Length:", body=b"hello"),
    "length-words": _post(b"Content-Length: five", body=b"hello"),
    "length-leading-zeros": _post(b"Content-Length: 0005", body=b"hello"),
    "length-huge": _post(b"Content-Length: " + b"9" * 30, body=b"hello"),
    "length-absurd": _post(b"Content-Length: " + b"9" * 5000, body=b"hello"),
    "length-trailing-tab": _post(b"Content-Length: 5\t", body=b"hello"),
    "length-trailing-nbsp": _post(b"Content-Length: 5\xa0", body=b"hello"),
    "length-semicolon": _post(b"Content-Length: 5;", body=b"hello"),
    "length-space-before-colon": _post(b"Content-Length : 5", body=b"hello"),
    "length-in-get": b"GET /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    "body-without-length": _post(body=b"hello"),
    "body-too-long": _post(b"Content-Length: 3", body=b"hello"),
    "body-a-request": _post(b"Content-Length: 0", body=b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"),
    "body-cut-short": _post(b"Content-Length: 500", body=b"hello"),
}

CODINGS = {
    "coding-upper-case": _post(b"TRANSFER-ENCODING: CHUNKED", body=_BODY),
    "coding-twice": _post(_CHUNKED, _CHUNKED, body=_BODY),
    "coding-list-twice": _post(b"Transfer-Encoding: chunked, chunked", body=_BODY),
    "coding-identity": _post(b"Transfer-Encoding: identity", b"Content-Length: 5", body=b"hello"),
    "coding-identity-chunked": _post(b"Transfer-Encoding: identity, chunked", body=_BODY),
    "coding-chunked-identity": _post(b"Transfer-Encoding: chunked, identity", body=_BODY),
    "coding-gzip": _post(b"Transfer-Encoding: gzip", body=b"hello"),
    "coding-gzip-chunked": _post(b"Transfer-Encoding: gzip, chunked", body=_BODY),
    "coding-chunked-gzip": _post(b"Transfer-Encoding: chunked, gzip", body=_BODY),
    "coding-gzip-then-chunked": _post(b"Transfer-Encoding: gzip", _CHUNKED, body=_BODY),
    "coding-unknown": _post(b"Transfer-Encoding: cow", b"Content-Length: 5", body=b"hello"),
    "coding-xchunked": _post(b"Transfer-Encoding: xchunked", body=_BODY),
    "coding-chunked-suffix": _post(b"Transfer-Encoding: chunked2", body=_BODY),
    "coding-chunked-parameter": _post(b"Transfer-Encoding: chunked;q=1", body=_BODY),
    "coding-quoted": _post(b'Transfer-Encoding: "chunked"', body=_BODY),
    "coding-single-quoted": _post(b"Transfer-Encoding: 'chunked'", body=_BODY),
    "coding-empty": _post(b"Transfer-Encoding:", body=_BODY),
    "coding-comma": _post(b"Transfer-Encoding: ,", body=_BODY),
    "coding-comma-chunked": _post(b"Transfer-Encoding: , chunked", body=_BODY),
    "coding-chunked-comma": _post(b"Transfer-Encoding: chunked,", body=_BODY),
    "coding-leading-tab": _post(b"Transfer-Encoding:\tchunked", body=_BODY),
    "coding-vertical-tab": _post(b"Transfer-Encoding: \x0bchunked", body=_BODY),
    "coding-form-feed": _post(b"Transfer-Encoding: chunked\x0c", body=_BODY),
    "coding-nbsp": _post(b"Transfer-Encoding: \xa0chunked", body=_BODY),
    "coding-nul": _post(b"Transfer-Encoding: chunked\0", body=_BODY),
    "coding-space-before-colon": _post(b"Transfer-Encoding : chunked", body=_BODY),
    "coding-tab-before-colon": _post(b"Transfer-Encoding\t: chunked", body=_BODY),
    "coding-name-prefixed": _post(b"X-Transfer-Encoding: chunked", b"Content-Length: 5", body=b"hello"),
    "coding-name-nul": _post(b"Transfer-Encoding\0: chunked", body=_BODY),
    "coding-after-cr": _post(b"X: x\rTransfer-Encoding: chunked", body=_BODY),
    "coding-http-1-0": b"POST /upload HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + _BODY,
    "coding-http-1-0-keep-alive": b"POST /upload HTTP/1.0\r\nConnection: keep-alive\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n" + _BODY,
    "te-only": _post(b"TE: chunked", b"Content-Length: 5", body=b"hello"),
}


def _chunks(body: bytes) -> bytes:
    return _post(_CHUNKED, body=body)


CHUNKS = {
    "chunk-plain": _chunks(_BODY),
    "chunk-upper-case": _chunks(b"A\r\nhelloworld\r\n0\r\n\r\n"),
    "chunk-leading-zeros": _chunks(b"00005\r\nhello\r\n000\r\n\r\n"),
    "chunk-0x": _chunks(b"0x5\r\nhello\r\n0\r\n\r\n"),
    "chunk-plus": _chunks(b"+5\r\nhello\r\n0\r\n\r\n"),
    "chunk-minus": _chunks(b"-5\r\nhello\r\n0\r\n\r\n"),
    "chunk-underscore": _chunks(b"1_0\r\nhellohellohelloh\r\n0\r\n\r\n"),
    "chunk-space-before": _chunks(b" 5\r\nhello\r\n0\r\n\r\n"),
    "chunk-space-after": _chunks(b"5 \r\nhello\r\n0\r\n\r\n"),
    "chunk-tab-after": _chunks(b"5\t\r\nhello\r\n0\r\n\r\n"),
    "chunk-empty-size": _chunks(b"\r\nhello\r\n0\r\n\r\n"),
    "chunk-words": _chunks(b"five\r\nhello\r\n0\r\n\r\n"),
    "chunk-latin-digit": _chunks(b"\xb2\r\nhe\r\n0\r\n\r\n"),
    "chunk-huge": _chunks(b"f" * 16 + b"\r\nhello\r\n0\r\n\r\n"),
    "chunk-absurd": _chunks(b"f" * 600 + b"\r\nhello\r\n0\r\n\r\n"),
    "chunk-endless-size": _chunks(b"0" * 20000),
    "chunk-too-short": _chunks(b"3\r\nhello\r\n0\r\n\r\n"),
    "chunk-too-long": _chunks(b"7\r\nhello\r\n0\r\n\r\n"),
    "chunk-no-crlf-after-data": _chunks(b"5\r\nhello0\r\n\r\n"),
    "chunk-lf-after-size": _chunks(b"5\nhello\r\n0\r\n\r\n"),
    "chunk-cr-after-size": _chunks(b"5\rhello\r\n0\r\n\r\n"),
    "chunk-lf-after-data": _chunks(b"5\r\nhello\n0\r\n\r\n"),
    "chunk-cr-after-data": _chunks(b"5\r\nhello\r0\r\n\r\n"),
    "chunk-lf-cr-after-data": _chunks(b"5\r\nhello\n\r0\r\n\r\n"),
    "chunk-lf-at-the-end": _chunks(b"5\r\nhello\r\n0\n\n"),
    "chunk-lf-after-last": _chunks(b"5\r\nhello\r\n0\r\n\n"),
    "chunk-any-two-after-data": _chunks(b"5\r\nhelloXX0\r\n\r\n"),
    "chunk-extension": _chunks(b"5;a\r\nhello\r\n0;b=c\r\n\r\n"),
    "chunk-extension-quoted": _chunks(b'5;a="b;\\"c"\r\nhello\r\n0\r\n\r\n'),
    "chunk-extension-quoted-crlf": _chunks(b'5;a="b\r\nhello"\r\n0\r\n\r\n'),
    "chunk-extension-spaces": _chunks(b"5 ; a = b\r\nhello\r\n0\r\n\r\n"),
    "chunk-extension-empty": _chunks(b"5;\r\nhello\r\n0\r\n\r\n"),
    "chunk-extension-lf": _chunks(b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
    "chunk-extension-cr": _chunks(b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
    "chunk-extension-nul": _chunks(b"5;a\0\r\nhello\r\n0\r\n\r\n"),
    "chunk-extension-long": _chunks(b"5;" + b"a" * 9000 + b"\r\nhello\r\n0\r\n\r\n"),
    "chunk-last-missing": _chunks(b"5\r\nhello\r\n"),
    "chunk-last-without-end": _chunks(b"5\r\nhello\r\n0\r\n"),
    "chunk-only-last": _chunks(b"0\r\n\r\n"),
    "chunk-last-twice": _chunks(b"0\r\n\r\n0\r\n\r\n"),
    "trailer": _chunks(b"5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n"),
    "trailer-length": _chunks(b"5\r\nhello\r\n0\r\nContent-Length: 3\r\n\r\n"),
    "trailer-coding": _chunks(b"5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "trailer-host": _chunks(b"5\r\nhello\r\n0\r\nHost: y\r\n\r\n"),
    "trailer-bad-name": _chunks(b"5\r\nhello\r\n0\r\nX T: 1\r\n\r\n"),
    "trailer-no-colon": _chunks(b"5\r\nhello\r\n0\r\nXT\r\n\r\n"),
    "trailer-folded": _chunks(b"5\r\nhello\r\n0\r\nX-T: 1\r\n 2\r\n\r\n"),
    "trailer-bare-lf": _chunks(b"5\r\nhello\r\n0\r\nX-T: 1\nX-U: 2\r\n\r\n"),
    "trailer-underscore": _chunks(b"5\r\nhello\r\n0\r\nX_T: 1\r\n\r\n"),
    "trailer-many": _chunks(b"0\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(200)) + b"\r\n"),
}

LIMITS = {
    "line-at-the-limit": _line(b"GET /" + b"a" * 4080 + b" HTTP/1.1"),
    "line-over-the-limit": _line(b"GET /" + b"a" * 4081 + b" HTTP/1.1"),
    "line-far-over-the-limit": _line(b"GET /" + b"a" * 20000 + b" HTTP/1.1"),
    "line-without-end": b"GET /" + b"a" * 20000,
    "method-without-end": b"G" * 20000,
    "field-at-the-limit": _get(b"X-A: " + b"a" * 8183),
    "field-over-the-limit": _get(b"X-A: " + b"a" * 8184),
    "field-far-over-the-limit": _get(b"X-A: " + b"a" * 30000),
    "name-over-the-limit": _get(b"X" * 9000 + b": 1"),
    "fields-at-the-limit": _get(*(b"X-%d: 1" % n for n in range(99))),
    "fields-over-the-limit": _get(*(b"X-%d: 1" % n for n in range(100))),
    "fields-far-over-the-limit": _get(*(b"X-%d: 1" % n for n in range(1000))),
    "fields-over-the-limit-and-bad": _get(*(b"X-%d: 1" % n for n in range(120)), b"bad"),
}

INCOMPLETE = {
    "nothing": b"",
    "empty-line": b"\r\n",
    "one-byte": b"G",
    "method": b"GET ",
    "request-line": b"GET / HTTP/1.1",
    "request-line-cr": b"GET / HTTP/1.1\r",
    "request-line-crlf": b"GET / HTTP/1.1\r\n",
    "half-a-field": b"GET / HTTP/1.1\r\nHos",
    "field": b"GET / HTTP/1.1\r\nHost: x\r\n",
    "almost-all": b"GET / HTTP/1.1\r\nHost: x\r\n\r",
}

FOLLOWED: dict[str, bytes] = {
    **REQUEST_LINES, **LINE_ENDS, **FIELDS, **LENGTHS, **CODINGS, **CHUNKS, **LIMITS,
}  # fmt: skip

#: As they go over the wire.
CASES = {name: sent + AFTER for name, sent in FOLLOWED.items()} | INCOMPLETE
assert len(CASES) == sum(
    map(len, (REQUEST_LINES, LINE_ENDS, FIELDS, LENGTHS, CODINGS, CHUNKS, LIMITS, INCOMPLETE))
)
