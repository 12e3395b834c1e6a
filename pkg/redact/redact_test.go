package redact

import "testing"

func TestURLsHidesSecrets(t *testing.T) {
	for text, want := range map[string]string{
		`Post "https://u:hunter2@h/write?a=1": refused`:      `Post "https://<secret>@h/write?a=1": refused`,
		"nats://hunter2@a:4222,nats://u:hunter2@b:4222":      "nats://<secret>@a:4222,nats://<secret>@b:4222",
		"https://h/write?access_token=hunter2&tenant=x#part": "https://h/write?access_token=<secret>&tenant=x#part",
		"/write?API_KEY=hunter2":                             "/write?API_KEY=<secret>",
		"https://h/write?tenant=x, mail to a@b":              "https://h/write?tenant=x, mail to a@b",
	} {
		if got := URLs(text); got != want {
			t.Errorf("%s is shown as %s, want %s", text, got, want)
		}
	}
}
