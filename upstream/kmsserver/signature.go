package kmsserver

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // the V1 protocol is HMAC-SHA1
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
	"time"
)

const (
	// timeWindow is how far a request's timestamp may be from the server's clock, either way.
	timeWindow = 15 * time.Minute

	timestampLayout = "2006-01-02T15:04:05Z"

	algorithmV3     = "ACS3-HMAC-SHA256"
	maxNonce        = 256
	maxSignedHeader = 64
)

// credentials is what a request says about its sender, whichever way it was signed.
type credentials struct {
	keyID     string
	token     string // empty: none
	timestamp string
	nonce     string

	// verify reports whether the signature is that of the key with the given secret. The
	// text is what was signed; empty when it must not be sent back.
	verify func(secret []byte) (right bool, stringToSign string)
}

// authenticate returns the key that signed a request. The order follows the service: what is
// missing, the key, the time, then the signature. Unlike there the nonce comes last: it is
// remembered only for requests that are genuine.
func authenticate(req *request, keys map[string]*accessKey, now time.Time) (*accessKey, error) {
	cred, err := req.credentials()
	if err != nil {
		return nil, err
	}
	key := keys[cred.keyID]
	if key == nil {
		return nil, errUnknownAccessKey
	}
	stamp, err := time.Parse(timestampLayout, cred.timestamp)
	if err != nil {
		return nil, errTimestampFormat
	}
	if now.Sub(stamp).Abs() > timeWindow {
		return nil, errTimestampExpired
	}
	if right, stringToSign := cred.verify(key.Secret.Reveal()); !right {
		return nil, errSignature(stringToSign)
	}
	switch {
	case key.SecurityToken.Len() > 0 && cred.token == "":
		return nil, errTokenMissing
	case subtle.ConstantTimeCompare([]byte(cred.token), key.SecurityToken.Reveal()) != 1:
		return nil, errTokenMismatch
	}
	if f := key.nonces.claim(cred.nonce, stamp, now); f != nil {
		return nil, f
	}
	return key, nil
}

// errSignature ends its message with the string to sign, as the service does: a client that
// finds its own there tells its user that the secret is wrong.
func errSignature(stringToSign string) *fault {
	const refused = "Specified signature is not matched with our calculation."
	f := &fault{status: 400, code: "SignatureDoesNotMatch", message: refused + " Check the AccessKeySecret.", recommend: "Check the AccessKeySecret."}
	if stringToSign != "" {
		f.message = refused + " server string to sign is:" + stringToSign
	}
	return f
}

// credentialsV1 reads a signature in the parameters.
func credentialsV1(method string, p params) (*credentials, error) {
	for _, c := range []struct{ name, want string }{
		{"SignatureMethod", "HMAC-SHA1"}, {"SignatureVersion", "1.0"}, {"SignatureType", ""},
	} {
		if got, given := p[c.name]; given && got != c.want {
			return nil, errSignatureMethod(c.name + " must be \"" + c.want + "\".")
		}
	}
	for _, name := range []string{"AccessKeyId", "Signature", "Timestamp", "SignatureNonce"} {
		if p[name] == "" {
			return nil, errMissingCommon(name)
		}
	}
	if len(p["SignatureNonce"]) > maxNonce {
		return nil, errFormat("SignatureNonce", "it is too long.")
	}
	given, err := base64.StdEncoding.DecodeString(p["Signature"])
	if err != nil {
		return nil, errIncompleteSignature("Signature is not base64.")
	}
	return &credentials{
		keyID: p["AccessKeyId"], token: p["SecurityToken"], timestamp: p["Timestamp"], nonce: p["SignatureNonce"],
		verify: func(secret []byte) (bool, string) {
			stringToSign := stringToSignV1(method, p)
			right := hmac.Equal(given, signV1(secret, stringToSign))
			// Clients print the messages of errors. A secret must not come back that way,
			// although it is the client's own.
			if p.holdSecrets() {
				stringToSign = ""
			}
			return right, stringToSign
		},
	}, nil
}

// holdSecrets reports whether a parameter may hold a secret.
func (p params) holdSecrets() bool {
	for _, name := range []string{"SecretData", "SecurityToken", "ExtendedConfig", "BearerToken"} {
		if p[name] != "" {
			return true
		}
	}
	return false
}

// stringToSignV1 covers all parameters of query and form, wherever they were.
func stringToSignV1(method string, p params) string {
	return method + "&%2F&" + percentEncode(p.canonical("Signature"))
}

func signV1(secret []byte, stringToSign string) []byte {
	mac := hmac.New(sha1.New, append(slices.Clone(secret), '&'))
	mac.Write([]byte(stringToSign))
	return mac.Sum(nil)
}

// signedV3 reports whether an Authorization header is one of the header signatures.
func signedV3(authorization string) bool {
	return strings.HasPrefix(authorization, "ACS3-") || strings.HasPrefix(authorization, "ACS4-")
}

// credentialsV3 reads a signature in the headers. Every header that the server acts on must
// be covered by it, and so must the body.
func (r *request) credentialsV3() (*credentials, error) {
	auth, err := parseAuthorization(r.authorization)
	if err != nil {
		return nil, err
	}
	if err := r.checkCoverage(auth.signed); err != nil {
		return nil, err
	}
	values := make(map[string]string, len(auth.signed))
	var canonicalHeaders strings.Builder
	for _, name := range auth.signed {
		value, err := r.header(name)
		if err != nil {
			return nil, err
		}
		values[name] = value
		canonicalHeaders.WriteString(name + ":" + value + "\n")
	}
	nonce := values["x-acs-signature-nonce"]
	sum := sha256.Sum256(r.body)
	bodyHash := hex.EncodeToString(sum[:])
	switch {
	case values["x-acs-date"] == "":
		return nil, errMissingCommon("Timestamp")
	case nonce == "":
		return nil, errMissingCommon("SignatureNonce")
	case len(nonce) > maxNonce:
		return nil, errFormat("SignatureNonce", "it is too long.")
	case values["x-acs-accesskey-id"] != "" && values["x-acs-accesskey-id"] != auth.keyID:
		return nil, errIncompleteSignature("x-acs-accesskey-id and Credential differ.")
	case values["x-acs-content-sha256"] != bodyHash:
		return nil, errIncompleteSignature("x-acs-content-sha256 is not the hash of the body.")
	}
	return &credentials{
		keyID: auth.keyID, token: values["x-acs-security-token"], timestamp: values["x-acs-date"], nonce: nonce,
		verify: func(secret []byte) (bool, string) {
			stringToSign := stringToSignV3(r.method, r.query, canonicalHeaders.String(), strings.Join(auth.signed, ";"), bodyHash)
			return hmac.Equal(auth.signature, signV3(secret, stringToSign)), stringToSign // a hash: it shows nothing
		},
	}, nil
}

// authorization is what the header of that name says.
type authorization struct {
	keyID     string
	signed    []string // names of headers
	signature []byte
}

func parseAuthorization(text string) (authorization, error) {
	algorithm, rest, _ := strings.Cut(text, " ")
	if algorithm != algorithmV3 {
		return authorization{}, errSignatureMethod("use " + algorithmV3 + " or HMAC-SHA1.")
	}
	fields := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		fields[name] = value
	}
	a := authorization{keyID: fields["Credential"], signed: strings.Split(fields["SignedHeaders"], ";")}
	var err error
	a.signature, err = hex.DecodeString(fields["Signature"])
	switch {
	case a.keyID == "" || fields["SignedHeaders"] == "" || len(a.signature) == 0 || err != nil:
		return a, errIncompleteSignature("Authorization is not of the form " + algorithmV3 + " Credential=…,SignedHeaders=…,Signature=….")
	case len(a.signed) > maxSignedHeader:
		return a, errIncompleteSignature("too many headers are signed.")
	}
	return a, nil
}

// checkCoverage checks that every header that counts is signed.
func (r *request) checkCoverage(signed []string) error {
	must := []string{"host", "x-acs-action", "x-acs-version", "x-acs-date", "x-acs-signature-nonce", "x-acs-content-sha256"}
	for _, optional := range []string{"x-acs-accesskey-id", "x-acs-security-token"} {
		if value, err := r.header(optional); err != nil || value != "" {
			must = append(must, optional)
		}
	}
	if contentType, _ := r.header("content-type"); len(r.body) > 0 && contentType != "" {
		must = append(must, "content-type")
	}
	for _, name := range must {
		if !slices.Contains(signed, name) {
			return errIncompleteSignature("the header " + name + " is not among SignedHeaders.")
		}
	}
	return nil
}

func stringToSignV3(method string, query params, canonicalHeaders, signedHeaders, bodyHash string) string {
	canonical := method + "\n/\n" + query.canonical("") + "\n" + canonicalHeaders + "\n" + signedHeaders + "\n" + bodyHash
	sum := sha256.Sum256([]byte(canonical))
	return algorithmV3 + "\n" + hex.EncodeToString(sum[:])
}

func signV3(secret []byte, stringToSign string) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(stringToSign))
	return mac.Sum(nil)
}
