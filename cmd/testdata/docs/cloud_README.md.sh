a_station line3-a
cp "$ROOT/var/lib/stationd/station.pub" .
openssl req -new -key board.pem -sha256 -subj "/CN=$DEVICE" -outform DER -out board.csr
