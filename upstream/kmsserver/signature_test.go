package kmsserver_test

import (
	"bufio"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/kmsserver"
)

var vectorTime = time.Date(2026, 11, 23, 12, 28, 35, 0, time.UTC)

// vector is a request that an official client sent and signed, byte for byte.
type vector struct {
	name    string
	clock   time.Time
	token   string // of the access key
	request string // with \n for line ends
	refused string // the code of the refusal; empty: it is answered
	check   func(t *testing.T, f *fixture, a answer)
}

const v3Head = "User-Agent: AlibabaCloud (linux; amd64) Golang/1.26.8 Core/0.01 TeaDSL/2\naccept: application/json\nAccept-Encoding: gzip\n"

var vectors = []vector{
	{
		name: "V1 CreateSecret by the older SDK", clock: vectorTime,
		request: "POST /?AccessKeyId=LTAI5tExampleKeyId000001&Action=CreateSecret&Description=%E6%95%B0%E6%8D%AE%E5%BA%93&EnableAutomaticRotation=false&Format=JSON&RegionId=cn-hangzhou&SecretData=%7B%22user%22%3A%22root%22%2C%22pwd%22%3A%22a+b%2Ac~d%2Be%2Ff%3D%C3%A9%26%22%7D&SecretDataType=text&SecretName=app%2Fdb&Signature=vsia%2BNfGDvSPkesw1RWh%2BIr%2B4VI%3D&SignatureMethod=HMAC-SHA1&SignatureNonce=24c87401a9ab48a509529a5a2430a500&SignatureType=&SignatureVersion=1.0&Tags=%5B%7B%22TagKey%22%3A%22env%22%2C%22TagValue%22%3A%22dev%22%7D%5D&Timestamp=2026-11-23T12%3A28%3A35Z&Version=2016-01-20&VersionId=v1 HTTP/1.1\n" +
			"Host: 127.0.0.1:18083\nUser-Agent: AlibabaCloud (linux; amd64) Golang/1.26.8 Core/1.63.22\nContent-Length: 0\nAccept-Encoding: identity\nContent-Type: application/x-www-form-urlencoded\n" +
			"x-acs-action: CreateSecret\nx-acs-credentials-provider: static_ak\nx-acs-version: 2016-01-20\nx-sdk-client: golang/1.0.0\nx-sdk-core-version: 1.63.22\nx-sdk-invoke-type: normal\n\n",
		check: wasCreated,
	},
	{
		name: "V1 PutSecretValue, parameters in query and form", clock: vectorTime,
		request: "POST /?AccessKeyId=LTAI5tExampleKeyId000001&Action=PutSecretValue&Format=JSON&RegionId=cn-hangzhou&Signature=v5wx2cG%2FGjfxiFHDburbGiHzkqs%3D&SignatureMethod=HMAC-SHA1&SignatureNonce=aabce12988d439293c94f789cf577d1e&SignatureType=&SignatureVersion=1.0&Timestamp=2026-11-23T12%3A28%3A35Z&Version=2016-01-20 HTTP/1.1\n" +
			"Host: 127.0.0.1:18083\nContent-Type: application/x-www-form-urlencoded\nContent-Length: 57\n\nSecretData=form+data%2B1&SecretName=app%2Fdb&VersionId=v2",
		check: func(t *testing.T, f *fixture, _ answer) { f.holds(t, "v2", "form data+1") },
	},
	{
		name: "V1 GetSecretValue by GET", clock: vectorTime,
		request: "GET /?AccessKeyId=LTAI5tExampleKeyId000001&Action=GetSecretValue&Format=JSON&RegionId=cn-hangzhou&SecretName=app%2Fdb&Signature=NF%2BTrY%2BmCqtAmXXBANte%2BiSG7%2Fk%3D&SignatureMethod=HMAC-SHA1&SignatureNonce=a5efc9c68bdd8b2dd2769ed891841f5f&SignatureType=&SignatureVersion=1.0&Timestamp=2026-11-23T12%3A28%3A35Z&Version=2016-01-20 HTTP/1.1\n" +
			"Host: 127.0.0.1:18083\n\n",
		check: wasRead,
	},
	{
		name: "V3 CreateSecret by the newer SDK", clock: vectorTime,
		request: "POST /?Description=%E6%95%B0%E6%8D%AE%E5%BA%93&EnableAutomaticRotation=false&ExtendedConfig=%7B%22CustomData%22%3A%7B%7D%7D&SecretData=%7B%22user%22%3A%22root%22%2C%22pwd%22%3A%22a+b%2Ac~d%2Be%2Ff%3D%C3%A9%26%22%7D&SecretDataType=text&SecretName=app%2Fdb&Tags=%5B%7B%22TagKey%22%3A%22env%22%2C%22TagValue%22%3A%22dev%22%7D%5D&VersionId=v1 HTTP/1.1\n" +
			"Host: 127.0.0.1:18083\nContent-Length: 0\n" + v3Head +
			"Authorization: ACS3-HMAC-SHA256 Credential=LTAI5tExampleKeyId000001,SignedHeaders=host;x-acs-action;x-acs-content-sha256;x-acs-credentials-provider;x-acs-date;x-acs-signature-nonce;x-acs-version,Signature=1b4788f91ec8fd24ab253f58f4e7d721bf57649afff998eb432b6d7ce9622355\n" +
			"x-acs-action: CreateSecret\nx-acs-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\nx-acs-credentials-provider: static_ak\nx-acs-date: 2026-11-23T12:28:35Z\nx-acs-signature-nonce: 8122ee27ebd0615b0d86b2cdfc9b46d5\nx-acs-version: 2016-01-20\n\n",
		check: wasCreated,
	},
	{
		name: "V3 GetSecretValue with a security token", clock: vectorTime, token: "CAIS-example+token/==",
		request: "POST /?SecretName=app%2Fdb HTTP/1.1\nHost: 127.0.0.1:18083\nContent-Length: 0\n" + v3Head +
			"Authorization: ACS3-HMAC-SHA256 Credential=LTAI5tExampleKeyId000001,SignedHeaders=host;x-acs-accesskey-id;x-acs-action;x-acs-content-sha256;x-acs-credentials-provider;x-acs-date;x-acs-security-token;x-acs-signature-nonce;x-acs-version,Signature=d0817852e67e1d0d766f1c799d0ed70942a546bfec8076d89651e847105c185b\n" +
			"x-acs-accesskey-id: LTAI5tExampleKeyId000001\nx-acs-action: GetSecretValue\nx-acs-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\nx-acs-credentials-provider: static_sts\nx-acs-date: 2026-11-23T12:28:35Z\nx-acs-security-token: CAIS-example+token/==\nx-acs-signature-nonce: c19ddc24e3629eb77f44be4049171c10\nx-acs-version: 2016-01-20\n\n",
		check: wasRead,
	},
	{
		name: "V3 GetSecretValue with a JSON body", clock: time.Date(2026, 11, 23, 12, 40, 14, 0, time.UTC),
		request: "POST / HTTP/1.1\nHost: 127.0.0.1:18097\nContent-Type: application/json; charset=utf-8\nContent-Length: 50\n" + v3Head +
			"Authorization: ACS3-HMAC-SHA256 Credential=LTAI5tExampleKeyId000001,SignedHeaders=content-type;host;x-acs-action;x-acs-content-sha256;x-acs-credentials-provider;x-acs-date;x-acs-signature-nonce;x-acs-version,Signature=a6ed83c47c393c1cecd586dbe1f373db85ecaf22033d8fd1e0bfe33b17e3bd7c\n" +
			"x-acs-action: GetSecretValue\nx-acs-content-sha256: 3e9eccd42391ea3d389fff3df06a07c84069ada9818ce6c1e9ed009e5bb89ac6\nx-acs-credentials-provider: static_ak\nx-acs-date: 2026-11-23T12:40:14Z\nx-acs-signature-nonce: 5992f77513d2486c20be5e05801cd6cd\nx-acs-version: 2016-01-20\n\n" +
			`{"FetchExtendedConfig":true,"SecretName":"app/db"}`,
		check: wasRead,
	},
	{
		name: "V1 GetSecretValue by the caching client for Java, in XML", clock: time.Date(2026, 11, 30, 4, 23, 25, 0, time.UTC),
		request: "POST /?VersionStage=ACSCurrent&Action=GetSecretValue&Timestamp=2026-11-30T04%3A23%3A25Z&SecretName=app%2Fdb&SignatureVersion=1.0&Format=XML&SignatureNonce=dd09a2901737b53ba09a8e99d7ef45c7&Version=2016-01-20&AccessKeyId=LTAI5tExampleKeyId000001&Signature=IzXM9%2Fujv3H%2BZX76nEVlFZO6dwA%3D&SignatureMethod=HMAC-SHA1&RegionId=cn-hangzhou&FetchExtendedConfig=true HTTP/1.1\n" +
			"Accept-Encoding: identity\nx-sdk-invoke-type: normal\nAccept: application/xml\nx-acs-action: GetSecretValue\nx-sdk-client: Java/2.0.0\nUser-Agent: AlibabaCloud (Linux; amd64) Java/17.0.15+6-Debian-1deb12u1 Core/4.7.6 HTTPClient/ApacheHttpClient alibabacloud-secretsmanager-java/1.3.7\nx-acs-version: 2016-01-20\nContent-Type: application/x-www-form-urlencoded\nHost: localhost:2226\nConnection: Keep-Alive\n\n",
		check: wasReadAsXML,
	},
	{
		name: "V1 GetSecretValue by the older SDK for Python", clock: time.Date(2026, 11, 30, 4, 23, 26, 0, time.UTC),
		request: "POST /?SecretName=app%2Fdb&Version=2016-01-20&Action=GetSecretValue&Format=JSON&RegionId=cn-hangzhou&Timestamp=2026-11-30T04%3A23%3A26Z&SignatureMethod=HMAC-SHA1&SignatureType=&SignatureVersion=1.0&SignatureNonce=000c41a8f19654e26214a0638c6a32a2&AccessKeyId=LTAI5tExampleKeyId000001&Signature=3e02curpRGsm9JUz6Jr%2Br932%2Bls%3D HTTP/1.1\n" +
			"Host: localhost:2226\nUser-Agent: AlibabaCloud (Linux; x86_64) Python/3.11.7 Core/2.16.1 python-requests/2.18.3\nAccept-Encoding: identity\nAccept: */*\nConnection: keep-alive\nx-acs-action: GetSecretValue\nx-acs-version: 2016-01-20\nx-sdk-invoke-type: normal\nx-sdk-client: python/2.0.0\nContent-Length: 0\n\n",
		check: wasRead,
	},
	{
		name: "V3 GetSecretValue by the newest SDK for Python", clock: time.Date(2026, 11, 30, 4, 23, 26, 0, time.UTC),
		request: "POST /?SecretName=app%2Fdb HTTP/1.1\n" +
			"Accept-Encoding: identity\nhost: localhost:2226\nx-acs-version: 2016-01-20\nx-acs-action: GetSecretValue\nuser-agent: AlibabaCloud (Linux; x86_64) Python/3.11.7 Core/0.4.3 TeaDSL/2\nx-acs-date: 2026-11-30T04:23:26Z\nx-acs-signature-nonce: 3d5b4981a57207ef83d2ab7d48995089\naccept: application/json\ncontent-type: application/x-www-form-urlencoded\nx-acs-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\nx-acs-credentials-provider: static_ak\nAuthorization: ACS3-HMAC-SHA256 Credential=LTAI5tExampleKeyId000001,SignedHeaders=accept;content-type;host;user-agent;x-acs-action;x-acs-content-sha256;x-acs-credentials-provider;x-acs-date;x-acs-signature-nonce;x-acs-version,Signature=b92c55d3572f505249cb2dd6fd134eb955f7f436833fc83dcf986b2af72bd1a9\nContent-Length: 0\n\n",
		check: wasRead,
	},
	{
		name: "V3 GetSecretValue by the newest SDK for Python, for an enclave, in a form", clock: time.Date(2026, 11, 30, 4, 23, 26, 0, time.UTC), refused: "InvalidParameter",
		request: "POST /?SecretName=app%2Fdb HTTP/1.1\n" +
			"Accept-Encoding: identity\nhost: localhost:2226\nx-acs-version: 2016-01-20\nx-acs-action: GetSecretValue\nuser-agent: AlibabaCloud (Linux; x86_64) Python/3.11.7 Core/0.4.3 TeaDSL/2\nx-acs-date: 2026-11-30T04:23:26Z\nx-acs-signature-nonce: 8a6ee07b3c8d0975efc54e5c783e1882\naccept: application/json\ncontent-type: application/x-www-form-urlencoded\nx-acs-content-sha256: de72cdb1c28c5c6000ef8f4b989c31b357476b609ea4d6f37d0f1f63ef426e61\nx-acs-credentials-provider: static_ak\nAuthorization: ACS3-HMAC-SHA256 Credential=LTAI5tExampleKeyId000001,SignedHeaders=accept;content-type;host;user-agent;x-acs-action;x-acs-content-sha256;x-acs-credentials-provider;x-acs-date;x-acs-signature-nonce;x-acs-version,Signature=d8452ac41276b9f2dc2a0b537aa2dfbffbc13e8aa8288ef33f556af91f789134\nContent-Length: 14\n\nRecipient=eyJh",
		check: func(t *testing.T, _ *fixture, a answer) {
			if strings.Contains(a.raw, "first") || !strings.Contains(a.text("Message"), "Recipient") {
				t.Errorf("got %s", a.raw)
			}
		},
	},
}

func (f *fixture) holds(t *testing.T, version, value string) {
	t.Helper()
	v, err := f.fake.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: "app/db"})
	if err != nil || string(v.VersionID) != version || string(v.SecretData.Reveal()) != value {
		t.Errorf("the backend holds version %s with %q: %v", v.VersionID, v.SecretData.Reveal(), err)
	}
}

func wasCreated(t *testing.T, f *fixture, _ answer) {
	t.Helper()
	f.holds(t, "v1", `{"user":"root","pwd":"a b*c~d+e/f=é&"}`)
	meta, err := f.fake.DescribeSecret(t.Context(), "app/db", true)
	if err != nil || meta.Description != "数据库" || !slices.Equal(meta.Tags, []upstream.Tag{{Key: "env", Value: "dev"}}) {
		t.Errorf("the backend holds %+v: %v", meta, err)
	}
}

func wasRead(t *testing.T, _ *fixture, a answer) {
	t.Helper()
	if a.text("SecretData") != "first" {
		t.Errorf("got %s", a.raw)
	}
}

func wasReadAsXML(t *testing.T, f *fixture, a answer) {
	t.Helper()
	wasRead(t, f, a)
	if a.root != "GetSecretValueResponse" || !strings.Contains(a.raw, "<VersionStages><VersionStage>ACSCurrent</VersionStage></VersionStages>") {
		t.Errorf("got %s", a.raw)
	}
}

// raw sends a request as it is written, but for the ends of lines, and reads the answer.
func (f *fixture) raw(t *testing.T, request string) answer {
	t.Helper()
	head, body, _ := strings.Cut(request, "\n\n")
	res, err := http.ReadResponse(bufio.NewReader(send(t, "tcp", f.address, strings.ReplaceAll(head, "\n", "\r\n")+"\r\n\r\n"+body)), nil)
	return read(t, res, err)
}

func (v vector) start(t *testing.T, at time.Time) *fixture {
	t.Helper()
	f := start(t, func(o *kmsserver.Tuned) {
		o.Clock = func() time.Time { return at }
		o.AccessKeys[0].SecurityToken = secretData(v.token)
	})
	if !strings.Contains(v.name, "Create") {
		f.fake.MustCreate(t, "app/db", "v1", "first")
	}
	return f
}

func TestRequestsOfOfficialClients(t *testing.T) {
	for _, v := range vectors {
		t.Run(v.name, func(t *testing.T) {
			f := v.start(t, v.clock)
			for _, c := range []struct{ what, old, changed string }{
				{"another secret", "app%2Fdb", "app%2Fdc"},
				{"another secret in JSON", `"app/db"`, `"app/dc"`},
				{"another action", "Action=GetSecretValue", "Action=DescribeSecret"},
				{"another action in the header", "x-acs-action: GetSecretValue", "x-acs-action: DescribeSecret"},
				{"another value", "SecretData=%7B", "SecretData=%5B"},
				{"another method", "POST /", "GET /"},
				{"another nonce", "SignatureNonce=", "SignatureNonce=0"},
				{"another nonce in the header", "x-acs-signature-nonce: ", "x-acs-signature-nonce: 0"},
				{"another minute", "12%3A28%3A35Z", "12%3A29%3A35Z"},
				{"another minute in the header", "x-acs-date: 2026-11-23T12:28", "x-acs-date: 2026-11-23T12:29"},
				{"one parameter more", "?", "?Force=true&"},
				{"another token", "x-acs-security-token: C", "x-acs-security-token: D"},
				{"another body hash", "x-acs-content-sha256: e3", "x-acs-content-sha256: e4"},
				{"another host", "Host: 127.0.0.1:18", "Host: 127.0.0.2:18"},
			} {
				changed := strings.Replace(v.request, c.old, c.changed, 1)
				inHeader := c.what == "another host" || strings.HasSuffix(c.what, "in the header")
				if changed == v.request || inHeader && !strings.Contains(v.name, "V3") || c.what == "one parameter more" && strings.Contains(v.request, "POST / ") {
					continue
				}
				a := f.raw(t, changed)
				if code := a.text("Code"); a.status != 400 || code != "SignatureDoesNotMatch" && code != "IncompleteSignature" {
					t.Errorf("%s: %d %s", c.what, a.status, a.raw)
				}
			}
			if n := f.fake.Calls("CreateSecret") + f.fake.Calls("PutSecretValue") + f.fake.Calls("GetSecretValue") + f.fake.Calls("DescribeSecret"); n != 0 {
				t.Errorf("%d forged calls reached the backend", n)
			}
			a := f.raw(t, v.request)
			status := 200
			if v.refused != "" {
				status = 400
			}
			a.wants(t, "unchanged", status, v.refused)
			v.check(t, f, a)
			f.raw(t, v.request).wants(t, "replayed", 400, "SignatureNonceUsed")
		})
	}
}

func TestTheTimeWindow(t *testing.T) {
	for _, v := range vectors {
		for offset, want := range map[time.Duration]string{
			15 * time.Minute: "", -15 * time.Minute: "",
			15*time.Minute + time.Second: "InvalidTimeStamp.Expired", -15*time.Minute - time.Second: "InvalidTimeStamp.Expired",
			24 * 365 * time.Hour: "InvalidTimeStamp.Expired",
		} {
			f := v.start(t, v.clock.Add(offset))
			if want == "" {
				want = v.refused
			}
			if code := f.raw(t, v.request).text("Code"); code != want {
				t.Errorf("%s, %s apart: %q, want %q", v.name, offset, code, want)
			}
		}
	}
}

// signer signs as an honest client does, written from the documentation and sharing nothing
// with the server.
type signer struct {
	*fixture
	id, secret, token string
	now               time.Time
}

func newSigner(f *fixture) *signer {
	return &signer{fixture: f, id: keyID, secret: keySecret, now: time.Now()}
}

// call makes a call that is signed as in version 1.
func (s *signer) call(t *testing.T, action string, pairs ...string) answer {
	t.Helper()
	return s.do(t, s.v1(t, "POST", params(action, pairs...), nil))
}

func (s *signer) nonce() string { return rand.Text() }

// rfc3986 encodes as the signatures want it.
func rfc3986(v string) string {
	return strings.NewReplacer("+", "%20", "*", "%2A", "%7E", "~").Replace(url.QueryEscape(v))
}

func sorted(values url.Values) string {
	var pairs []string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		pairs = append(pairs, rfc3986(name)+"="+rfc3986(values.Get(name)))
	}
	return strings.Join(pairs, "&")
}

// v1 signs query and form; common parameters that are already there are left alone.
func (s *signer) v1(t *testing.T, method string, query, form url.Values) *http.Request {
	t.Helper()
	common := url.Values{
		"Version": {"2016-01-20"}, "AccessKeyId": {s.id}, "SignatureMethod": {"HMAC-SHA1"}, "SignatureVersion": {"1.0"},
		"SignatureNonce": {s.nonce()}, "Timestamp": {s.now.UTC().Format("2006-01-02T15:04:05Z")},
	}
	if s.token != "" {
		common.Set("SecurityToken", s.token)
	}
	maps.Copy(common, query)
	maps.Copy(query, common)
	all := maps.Clone(query)
	maps.Copy(all, form)
	mac := hmac.New(sha1.New, []byte(s.secret+"&"))
	mac.Write([]byte(method + "&%2F&" + rfc3986(sorted(all))))
	if !query.Has("Signature") {
		query.Set("Signature", base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.address+"/?"+query.Encode(), strings.NewReader(form.Encode()))
	must(t, err)
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	return req
}

// v3 signs headers, query and body; headers in unsigned are sent but not signed.
func (s *signer) v3(t *testing.T, action string, query url.Values, contentType, body string, unsigned ...string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.address+"/?"+query.Encode(), strings.NewReader(body))
	must(t, err)
	hash := sha256.Sum256([]byte(body))
	headers := map[string]string{
		"host": s.address, "x-acs-action": action, "x-acs-version": "2016-01-20", "x-acs-date": s.now.UTC().Format("2006-01-02T15:04:05Z"),
		"x-acs-signature-nonce": s.nonce(), "x-acs-content-sha256": hex.EncodeToString(hash[:]),
	}
	if contentType != "" {
		headers["content-type"] = contentType
	}
	if s.token != "" {
		headers["x-acs-accesskey-id"], headers["x-acs-security-token"] = s.id, s.token
	}
	var names []string
	for name, value := range headers {
		req.Header.Set(name, value)
		if !slices.Contains(unsigned, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	block := ""
	for _, name := range names {
		block += name + ":" + headers[name] + "\n"
	}
	signed := strings.Join(names, ";")
	request := sha256.Sum256([]byte("POST\n/\n" + sorted(query) + "\n" + block + "\n" + signed + "\n" + hex.EncodeToString(hash[:])))
	mac := hmac.New(sha256.New, []byte(s.secret))
	mac.Write([]byte("ACS3-HMAC-SHA256\n" + hex.EncodeToString(request[:])))
	req.Header.Set("Authorization", fmt.Sprintf("ACS3-HMAC-SHA256 Credential=%s,SignedHeaders=%s,Signature=%x", s.id, signed, mac.Sum(nil)))
	return req
}

func (f *fixture) do(t *testing.T, req *http.Request) answer {
	t.Helper()
	res, err := f.web.Do(req)
	return read(t, res, err)
}

func TestHandWrittenClients(t *testing.T) {
	f := start(t)
	f.fake.MustCreate(t, "app/db", "v1", "first")
	s := newSigner(f)
	const awkward = "\"\\ \n%+&=é数\u2028🔑*~"
	put := func(value string) url.Values {
		return url.Values{"SecretName": {"app/db"}, "VersionId": {"v" + value[:1]}, "SecretData": {value}}
	}
	with := func(values url.Values) url.Values { values.Set("Action", "PutSecretValue"); return values }
	json := `{"SecretName":"app/db","VersionId":"v6","SecretData":"6\"\\ \n\u00e9\ud83d\udd11","VersionStages":["ACSCurrent"],"Nothing":null}`
	full := "7" + strings.Repeat("数", 30720/3-1)
	for _, c := range []struct {
		what    string
		request *http.Request
		value   string
	}{
		{"V1 form", s.v1(t, "POST", params("PutSecretValue"), put("2"+awkward)), "2" + awkward},
		{"V1 GET", s.v1(t, "GET", with(put("3"+awkward)), nil), "3" + awkward},
		{"V3 query", s.v3(t, "PutSecretValue", put("4"+awkward), "", ""), "4" + awkward},
		{"V3 form", s.v3(t, "PutSecretValue", url.Values{}, "application/x-www-form-urlencoded", put("5"+awkward).Encode()), "5" + awkward},
		{"V3 JSON", s.v3(t, "PutSecretValue", url.Values{}, "application/json", json), "6\"\\ \né🔑"},
		{"V1 full length", s.v1(t, "POST", with(put(full)), nil), full},
	} {
		f.do(t, c.request).wants(t, c.what, 200, "")
		f.holds(t, "v"+c.value[:1], c.value)
	}
}

func TestWhatASignatureMustCarry(t *testing.T) {
	f := start(t)
	f.fake.MustCreate(t, "app/db", "v1", "first")
	s := newSigner(f)
	v1 := func(what, code string, status int, pairs ...string) {
		t.Helper()
		s.call(t, "GetSecretValue", append(pairs, "SecretName", "app/db")...).wants(t, what, status, code)
	}
	v1("as it should be", "", 200)
	v1("empty SignatureType", "", 200, "SignatureType", "")
	v1("no key", "MissingAccessKeyId", 400, "AccessKeyId", "")
	v1("no signature", "MissingSignature", 400, "Signature", "")
	v1("no timestamp", "MissingTimestamp", 400, "Timestamp", "")
	v1("no nonce", "MissingSignatureNonce", 400, "SignatureNonce", "")
	v1("long nonce", "InvalidParameter.Format", 400, "SignatureNonce", strings.Repeat("n", 300))
	v1("unknown key", "InvalidAccessKeyId.NotFound", 404, "AccessKeyId", "somebody")
	v1("other method", "InvalidSignatureMethod", 400, "SignatureMethod", "HMAC-MD5")
	v1("other version", "InvalidSignatureMethod", 400, "SignatureVersion", "2.0")
	v1("bearer token", "InvalidSignatureMethod", 400, "SignatureType", "BEARERTOKEN")
	v1("no base64", "IncompleteSignature", 400, "Signature", "!!!")
	v1("wrong signature", "SignatureDoesNotMatch", 400, "Signature", "AAAA")
	v1("no time", "InvalidTimeStamp.Format", 400, "Timestamp", "yesterday")
	v1("a token nobody gave", "InvalidSecurityToken.MismatchWithAccessKey", 400, "SecurityToken", "t")

	v3 := func(what, code, authorization string, unsigned ...string) {
		t.Helper()
		req := s.v3(t, "GetSecretValue", url.Values{"SecretName": {"app/db"}}, "", "", unsigned...)
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		f.do(t, req).wants(t, what, 400, code)
	}
	for _, header := range []string{"host", "x-acs-action", "x-acs-version", "x-acs-date", "x-acs-signature-nonce", "x-acs-content-sha256"} {
		v3(header+" is not signed", "IncompleteSignature", "", header)
	}
	f.do(t, s.v3(t, "GetSecretValue", url.Values{}, "application/json", `{"SecretName":"app/db"}`, "content-type")).wants(t, "content-type is not signed", 400, "IncompleteSignature")
	s.token = "t"
	v3("the token is not signed", "IncompleteSignature", "", "x-acs-security-token")
	v3("a token nobody gave", "InvalidSecurityToken.MismatchWithAccessKey", "")
	s.token = ""
	for _, authorization := range []string{"ACS4-HMAC-SHA256 Credential=x", "ACS3-HMAC-SM3 Credential=x", "ACS3-RSA-SHA256 Credential=x"} {
		v3(authorization, "InvalidSignatureMethod", authorization)
	}
	for _, rest := range []string{"", " Credential=x,SignedHeaders=host", " Credential=x,SignedHeaders=host,Signature=zz", " Credential=x,Signature=00", " SignedHeaders=host,Signature=00"} {
		v3(rest, "IncompleteSignature", "ACS3-HMAC-SHA256"+rest)
	}
	req := s.v3(t, "GetSecretValue", url.Values{"SecretName": {"app/db"}}, "", "")
	req.Header.Add("x-acs-date", s.now.UTC().Format("2006-01-02T15:04:05Z"))
	f.do(t, req).wants(t, "a header twice", 400, "IncompleteSignature")
	unsigned := url.Values{"Action": {"GetSecretValue"}, "Version": {"2016-01-20"}, "SecretName": {"app/db"}}
	res, err := f.web.PostForm("http://"+f.address+"/", unsigned)
	read(t, res, err).wants(t, "nothing at all", 400, "MissingAccessKeyId")
	jsonBody := s.v1(t, "POST", url.Values{"Action": {"GetSecretValue"}}, nil)
	jsonBody.Body = io.NopCloser(strings.NewReader(`{"SecretName":"app/db"}`))
	jsonBody.ContentLength = 23
	jsonBody.Header.Set("Content-Type", "application/json")
	f.do(t, jsonBody).wants(t, "a JSON body that V1 does not cover", 400, "ParseRequestParameterException")
}

func TestSecurityTokens(t *testing.T) {
	f := start(t, func(o *kmsserver.Tuned) { o.AccessKeys[0].SecurityToken = secretData("CAIS-token+/==") })
	f.fake.MustCreate(t, "app/db", "v1", "first")
	for token, want := range map[string]string{"CAIS-token+/==": "", "": "MissingSecurityToken", "CAIS-token+/==2": "InvalidSecurityToken.MismatchWithAccessKey"} {
		s := newSigner(f)
		s.token = token
		if code := s.call(t, "GetSecretValue", "SecretName", "app/db").text("Code"); code != want {
			t.Errorf("V1 with token %q: %q, want %q", token, code, want)
		}
		if code := f.do(t, s.v3(t, "GetSecretValue", url.Values{"SecretName": {"app/db"}}, "", "")).text("Code"); code != want {
			t.Errorf("V3 with token %q: %q, want %q", token, code, want)
		}
	}
}

func TestTheStringToSignIsSentBackUnlessItHoldsASecret(t *testing.T) {
	s := newSigner(start(t))
	s.secret = "wrong"
	a := s.call(t, "GetSecretValue", "SecretName", "app/db")
	_, theirs, found := strings.Cut(a.text("Message"), "server string to sign is:")
	if !found || !strings.HasPrefix(theirs, "POST&%2F&AccessKeyId%3D"+keyID) || strings.Contains(theirs, "Signature%3D") {
		t.Errorf("message %q", a.text("Message"))
	}
	for _, holder := range []string{"SecretData", "SecurityToken", "ExtendedConfig"} {
		a := s.call(t, "CreateSecret", holder, "MARKER")
		a.wants(t, holder, 400, "SignatureDoesNotMatch")
		if strings.Contains(a.raw, "MARKER") || strings.Contains(a.raw, "string to sign") || !strings.Contains(a.text("Message"), "AccessKeySecret") {
			t.Errorf("%s: %s", holder, a.raw)
		}
	}
}

func TestReplays(t *testing.T) {
	clock := vectorTime
	f := start(t, func(o *kmsserver.Tuned) {
		o.Clock = func() time.Time { return clock }
		o.Limits.NoncesPerKey = 3
		second := fullKey()
		second.ID = "second"
		o.AccessKeys = append(o.AccessKeys, second)
	})
	s := newSigner(f)
	s.now = clock
	list := func(what, nonce, want string) {
		t.Helper()
		if got := s.call(t, "ListSecrets", "SignatureNonce", nonce).text("Code"); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	list("first", "a", "")
	list("again", "a", "SignatureNonceUsed")
	s.now = clock.Add(-14 * time.Minute)
	list("again with another time", "a", "SignatureNonceUsed")
	s.now, s.secret = clock, "wrong"
	for _, nonce := range []string{"w1", "w2", "w3", "w4"} {
		list("forged", nonce, "SignatureDoesNotMatch")
	}
	s.secret = keySecret
	list("a nonce that a forger tried", "w1", "")
	list("third", "b", "")
	list("the memory is full", "c", "Rejected.Throttling")
	list("a replay while it is full", "a", "SignatureNonceUsed")
	s.id = "second"
	list("another key has its own memory", "a", "")
	must(t, f.server.SetAccessKeys([]kmsserver.AccessKey{fullKey()}))
	list("a key that is gone", "z", "InvalidAccessKeyId.NotFound")
	s.id = keyID
	list("a replay after the keys were set again", "a", "SignatureNonceUsed")

	second := fullKey()
	second.ID = "second"
	both := []kmsserver.AccessKey{fullKey(), second}
	must(t, f.server.SetAccessKeys(nil))
	must(t, f.server.SetAccessKeys(both))
	list("a replay after the key was removed and added again", "a", "SignatureNonceUsed")
	s.id = "second"
	list("one of a key that was away for two changes", "a", "SignatureNonceUsed")
	s.id = keyID
	clock = clock.Add(17 * time.Minute)
	s.now = clock
	for range 2 { // the first removes a key that may still be used until then
		must(t, f.server.SetAccessKeys([]kmsserver.AccessKey{fullKey()}))
	}
	if n := f.server.RemovedKeys(); n != 0 {
		t.Errorf("%d removed keys are remembered when the window has passed", n)
	}
	list("when the window has passed", "c", "")
}
