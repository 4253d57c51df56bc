"""What a call is given and hands back: sampling parameters, requests, streams, scores."""
