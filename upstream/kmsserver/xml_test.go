package kmsserver_test

import (
	"bufio"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"secretagent/upstream/kmsserver"
)

// xmlNode is an element as encoding/xml reads it, with the elements in it and the text.
type xmlNode struct {
	XMLName  xml.Name
	Text     string    `xml:",chardata"`
	Children []xmlNode `xml:",any"`
}

// leaves adds what an element holds to the list, as the path and the text of each innermost one.
func (n xmlNode) leaves(path string, list []string) []string {
	if len(n.Children) == 0 && n.Text != "" {
		return append(list, path+"="+n.Text)
	}
	for _, c := range n.Children {
		list = c.leaves(path+"/"+c.XMLName.Local, list)
	}
	return list
}

// leavesOfJSON is the same of a JSON value. An array leaves no trace in the path.
func leavesOfJSON(value any, path string, list []string) []string {
	switch value := value.(type) {
	case map[string]any:
		for name, member := range value {
			list = leavesOfJSON(member, path+"/"+name, list)
		}
	case []any:
		for _, item := range value {
			list = leavesOfJSON(item, path, list)
		}
	default:
		if text := fmt.Sprint(value); text != "" {
			list = append(list, path+"="+text)
		}
	}
	return list
}

// sameAnswer checks that an answer in XML says what one in JSON says.
func sameAnswer(t *testing.T, what string, inJSON, inXML answer) {
	t.Helper()
	hide := func(a answer, list []string) string {
		slices.Sort(list)
		return strings.ReplaceAll(strings.Join(list, "\n"), a.text("RequestId"), "ID")
	}
	want, got := hide(inJSON, leavesOfJSON(inJSON.body, "", nil)), hide(inXML, inXML.document.leaves("", nil))
	if inXML.root == "" || want != got || inJSON.status != inXML.status {
		t.Errorf("%s: %d in JSON, %d in <%s>:\n%s\nand in XML\n%s", what, inJSON.status, inXML.status, inXML.root, want, got)
	}
}

// The documents, letter by letter, as a client that parses none of it would see them.
func TestXMLOverTheWire(t *testing.T) {
	f := start(t, func(o *kmsserver.Tuned) { o.AccessKeys = append(o.AccessKeys, fullKey()); o.AccessKeys[1].ID = "other" })
	s := newSigner(f)
	f.fake.MustCreate(t, "app/db", "v1", " <a>&\"'\r\n\t]]> é🔑 ")
	f.fake.MustCreate(t, "app/key", "v1", "a\x01b")
	value := s.call(t, "GetSecretValue", "SecretName", "app/db", "Format", "XML")
	created := value.text("CreateTime")
	for _, c := range []struct {
		what, want string
		a          answer
	}{
		{"a value", `<GetSecretValueResponse><SecretName>app/db</SecretName><VersionId>v1</VersionId><SecretData> &lt;a&gt;&amp;"'&#13;` + "\n\t" +
			`]]&gt; é🔑 </SecretData><SecretDataType>text</SecretDataType><SecretType>Generic</SecretType><VersionStages><VersionStage>ACSCurrent</VersionStage></VersionStages>` +
			`<CreateTime>` + created + `</CreateTime><RequestId>ID</RequestId></GetSecretValueResponse>`, value},
		{"an error", `<Error><HttpStatus>404</HttpStatus><Code>Forbidden.ResourceNotFound</Code><Message>no such secret</Message><RequestId>ID</RequestId><HostId>` + f.address +
			`</HostId><Recommend></Recommend></Error>`, s.call(t, "GetSecretValue", "SecretName", "none", "Format", "XML")},
		{"a value that XML cannot carry", `<Error><HttpStatus>400</HttpStatus><Code>InvalidParameter.Format</Code><Message>The parameter Format is not valid: ` +
			`SecretData holds a character that XML cannot carry, such as a control character. Ask with Format=JSON.</Message><RequestId>ID</RequestId><HostId>` + f.address +
			`</HostId><Recommend></Recommend></Error>`, s.call(t, "GetSecretValue", "SecretName", "app/key", "Format", "XML")},
		{"an empty list", `<ListSecretsResponse><SecretList></SecretList><PageNumber>9</PageNumber><PageSize>10</PageSize><TotalCount>2</TotalCount><RequestId>ID</RequestId></ListSecretsResponse>`,
			s.call(t, "ListSecrets", "PageNumber", "9", "Format", "XML")},
	} {
		if got := strings.ReplaceAll(c.a.raw, c.a.text("RequestId"), "ID"); got != `<?xml version="1.0" encoding="UTF-8"?>`+c.want {
			t.Errorf("%s:\ngot  %s\nwant %s", c.what, got, c.want)
		}
	}
	if a := s.call(t, "GetSecretValue", "SecretName", "app/key"); a.text("SecretData") != "a\x01b" {
		t.Errorf("JSON carries it: %s", a.raw)
	}
}

// ask makes a request over the socket, with an Accept header unless it is empty.
func (f *fixture) ask(t *testing.T, method, target, accept, body string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://kms.local"+target, strings.NewReader(body))
	must(t, err)
	if body != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if body[0] == '{' {
			req.Header.Set("Content-Type", "application/json")
		}
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	res, err := f.local.Do(req)
	return read(t, res, err)
}

func TestTheFormatOfAnAnswer(t *testing.T) {
	f := start(t)
	const list = "/?Action=ListSecrets&Version=2016-01-20"
	for _, c := range []struct {
		target, accept, body string
		xml                  bool
	}{
		// Neither is asked for: what the KMS API documents.
		{list, "", "", false},
		{list, "*/*", "", false},
		{list, "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", "", false}, // HttpURLConnection
		{list, "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "", false},
		{list + "&Format=", "", "", false},
		// Accept alone.
		{list, "application/xml", "", true},
		{list, "Application/XML;q=0.9 , text/xml", "", true},
		{list, "application/json", "", false},
		{list, "application/xml, application/json", "", false},
		// Format, in any letters and place, decides.
		{list + "&Format=XML", "", "", true},
		{list + "&Format=xml", "application/json", "", true},
		{list + "&Format=Xml", "application/xml", "", true},
		{list + "&Format=json", "application/xml", "", false},
		{"/", "", "Action=ListSecrets&Version=2016-01-20&Format=XML", true},
		{"/?Format=JSON", "application/xml", "Action=ListSecrets&Version=2016-01-20", false},
		{list, "", `{"Format":"XML"}`, true},
	} {
		a := f.ask(t, http.MethodPost, c.target, c.accept, c.body)
		if a.status != 200 || (a.root == "ListSecretsResponse") != c.xml {
			t.Errorf("%s, Accept %q, body %q: %d %s", c.target, c.accept, c.body, a.status, a.raw)
		}
	}
	for accept, root := range map[string]string{"": "", "application/xml": "Error"} {
		a := f.ask(t, http.MethodPost, list+"&Format=YAML", accept, "")
		a.wants(t, "another format", 400, "InvalidParameter.Format")
		if a.root != root || !strings.Contains(a.text("Message"), "neither JSON nor XML") {
			t.Errorf("Accept %q: %s", accept, a.raw)
		}
	}
}

// Whatever is refused, and however early, is refused in the format that was asked for.
func TestRefusalsInXML(t *testing.T) {
	f := start(t)
	const list = "/?Action=ListSecrets&Version=2016-01-20"
	for _, c := range []struct {
		method, target, body string
		status               int
		code                 string
	}{
		{"PUT", list, "", 400, "UnsupportedHTTPMethod"},
		{"POST", "/secret?x=y", "", 404, "InvalidApi.NotFound"},
		{"POST", "/?Action=Colour&Version=2016-01-20", "", 404, "InvalidApi.NotFound"},
		{"POST", "/?Version=2016-01-20", "", 400, "MissingAction"},
		{"POST", list + "&a=%zz", "", 400, "ParseRequestParameterException"},
		{"POST", list + "&PageSize=1&PageSize=1", "", 400, "ParseRequestParameterException"},
		{"POST", list, "a=%zz", 400, "ParseRequestParameterException"},
		{"POST", list, "Action=ListSecrets", 400, "ParseRequestParameterException"},
		{"POST", list, "{", 400, "ParseRequestParameterException"},
		{"POST", list, "PageSize=x", 400, "InvalidParameter"},
		{"POST", list, "%01=a&%01=a", 400, "ParseRequestParameterException"},
		{"POST", "/?Action=GetSecretValue&Version=2016-01-20&SecretName=%ff", "", 400, "InvalidParameter"},
		{"POST", "/?Action=GetSecretValue&Version=2016-01-20&SecretName=none", "", 404, "Forbidden.ResourceNotFound"},
		{"POST", "/?Action=GetSecretPolicy&Version=2016-01-20&SecretName=none", "", 0, ""},
	} {
		inXML := []answer{f.ask(t, c.method, c.target+"&Format=xml", "", c.body), f.ask(t, c.method, c.target, "application/xml", c.body)}
		if c.body != "" && c.body[0] != '{' {
			inXML = append(inXML, f.ask(t, c.method, c.target, "", c.body+"&Format=XML"))
		}
		for _, a := range inXML {
			if c.code != "" {
				a.wants(t, c.target+" "+c.body, c.status, c.code)
			}
			sameAnswer(t, c.target+" "+c.body, f.ask(t, c.method, c.target, "", c.body), a)
		}
	}

	s := newSigner(f)
	s.secret = "wrong"
	s.call(t, "ListSecrets", "Format", "XML").wants(t, "a wrong secret", 400, "SignatureDoesNotMatch")
	s.id = "unknown"
	if a := s.call(t, "ListSecrets", "Format", "XML"); a.root != "Error" || a.text("Code") != "InvalidAccessKeyId.NotFound" {
		t.Errorf("an unknown key: %s", a.raw)
	}

	// What the library of the server refuses.
	res, err := http.ReadResponse(bufio.NewReader(send(t, "unix", f.socket, "POST /?Format=XML HTTP/1.1\r\nHost: x\r\nContent-Length: 307200\r\n\r\nPadding=")), nil)
	a := read(t, res, err)
	a.wants(t, "a body that is too long", 413, "InvalidParameter")
	if a.root != "Error" {
		t.Errorf("a body that is too long: %s", a.raw)
	}
	// A host of which XML cannot carry a character.
	res, err = http.ReadResponse(bufio.NewReader(send(t, "unix", f.socket, "GET /?Format=XML HTTP/1.1\r\nHost: a\uFFFFb\r\n\r\n")), nil)
	if a := read(t, res, err); a.root != "Error" || a.text("HostId") != "a\uFFFDb" {
		t.Errorf("the host is in %s", a.raw)
	}
}

// TestRequestsInTheStyleOfTheCommandLine sends what hand-written clients and the command line of
// the cloud send: signed in the parameters, by GET, by POST in the query and in a form.
func TestRequestsInTheStyleOfTheCommandLine(t *testing.T) {
	f := start(t)
	f.fake.MustCreate(t, "app/db", "v1", "a b*c~d+e/f=é&%")
	s := newSigner(f)
	send := func(placement string, parameters url.Values) answer {
		t.Helper()
		req := s.v1(t, strings.Fields(placement)[0], parameters, nil)
		if placement == "POST form" {
			form := req.URL.RawQuery
			var err error
			req, err = http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+f.address+"/", strings.NewReader(form))
			must(t, err)
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		return s.do(t, req)
	}
	for _, placement := range []string{"GET query", "POST query", "POST form"} {
		for _, format := range []string{"", "JSON", "XML"} {
			with := func(action string, pairs ...string) url.Values {
				p := params(action, append(pairs, "RegionId", "cn-hangzhou", "SignatureType", "")...)
				if format != "" {
					p.Set("Format", format)
				}
				return p
			}
			what := placement + " " + format
			a := send(placement, with("GetSecretValue", "SecretName", "app/db"))
			if a.status != 200 || a.text("SecretData") != "a b*c~d+e/f=é&%" || (a.root == "GetSecretValueResponse") != (format == "XML") {
				t.Errorf("%s: %d %s", what, a.status, a.raw)
			}
			version := "v " + what
			send(placement, with("PutSecretValue", "SecretName", "app/db", "VersionId", strings.ReplaceAll(version, " ", "-"), "SecretData", "x", "VersionStages", `["blue"]`)).wants(t, what, 200, "")
			a = send(placement, with("GetSecretValue", "SecretName", "none"))
			a.wants(t, what, 404, "Forbidden.ResourceNotFound")
			if (a.root == "Error") != (format == "XML") {
				t.Errorf("%s: %s", what, a.raw)
			}
		}
	}
}
