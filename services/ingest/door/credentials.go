package door

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net/http"
	"strings"
)

// digest is what is compared instead of a secret: all are of one length, so that the time a comparison takes says
// nothing, not even about the length.
type digest = [sha256.Size]byte

// credentials are those that a door accepts.
type credentials struct {
	username string
	user     digest
	password *watched[digest] // nil: no basic authentication
	token    *watched[digest] // nil: no bearer authentication
	schemes  []string         // values of WWW-Authenticate
	message  string
}

// newCredentials returns nil where everybody may push.
func newCredentials(a Auth, failed func(error)) (*credentials, error) {
	c := &credentials{username: a.Username, user: sha256.Sum256([]byte(a.Username))}
	var accepted []string
	if a.Username != "" {
		var err error
		if c.password, err = watchSecret(a.Password, a.PasswordFile, failed); err != nil {
			return nil, fmt.Errorf("basic_auth: reading password_file: %w", err)
		}
		c.schemes = append(c.schemes, `Basic realm="Millrace", charset="UTF-8"`)
		accepted = append(accepted, "a user name and password (basic authentication)")
	}
	if a.BearerToken != "" || a.BearerTokenFile != "" {
		var err error
		if c.token, err = watchSecret(a.BearerToken, a.BearerTokenFile, failed); err != nil {
			return nil, fmt.Errorf("reading bearer_token_file: %w", err)
		}
		c.schemes = append(c.schemes, `Bearer realm="Millrace"`)
		accepted = append(accepted, "a bearer token")
	}
	if len(accepted) == 0 {
		return nil, nil
	}
	c.message = "send " + strings.Join(accepted, " or ") + " in the header Authorization"
	return c, nil
}

func watchSecret(secret, path string, failed func(error)) (*watched[digest], error) {
	if path == "" {
		return watch(nil, failed, func() (digest, error) { return sha256.Sum256([]byte(secret)), nil })
	}
	return watch([]string{path}, failed, func() (digest, error) {
		s, err := readSecret(path)
		return sha256.Sum256([]byte(s)), err
	})
}

// check returns the user's name, empty for a bearer token.
func (c *credentials) check(r *http.Request) (user string, f *failure) {
	header := r.Header["Authorization"]
	switch {
	case len(header) == 0 || header[0] == "":
		return "", fail(unauthenticated, "no credentials: %s", c.message)
	case len(header) > 1:
		return "", fail(unauthenticated, "more than one header Authorization: %s once", c.message)
	}
	scheme, value, _ := strings.Cut(header[0], " ")
	switch {
	case c.token != nil && strings.EqualFold(scheme, "Bearer"):
		given, want := sha256.Sum256([]byte(strings.TrimSpace(value))), c.token.get()
		if subtle.ConstantTimeCompare(given[:], want[:]) == 1 {
			return "", nil
		}
		return "", fail(unauthenticated, "the bearer token is not the configured one")
	case c.password != nil && strings.EqualFold(scheme, "Basic"):
		name, password, ok := r.BasicAuth()
		if !ok {
			return "", fail(unauthenticated, "the basic authentication in the header Authorization is not the base64 of user:password")
		}
		givenUser, given, want := sha256.Sum256([]byte(name)), sha256.Sum256([]byte(password)), c.password.get()
		if subtle.ConstantTimeCompare(givenUser[:], c.user[:])&subtle.ConstantTimeCompare(given[:], want[:]) == 1 {
			return c.username, nil
		}
		return "", fail(unauthenticated, "the user name or the password is not the configured one")
	}
	return "", fail(unauthenticated, "the authentication scheme of the header Authorization is not one that is accepted here: %s", c.message)
}
